"""Tables of the report page: stages, evaluation, deviations from the paper."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UsageError
from trainer.config.load import PAPER_PRESET, load_config
from trainer.config.paper import list_deviations, list_patch_deviations
from trainer.config.schema import Stage
from trainer.evaluation.tables import TITLES, format_value
from trainer.reporting.figures import select_series

Rows = list[dict[str, Any]]
BEST = ("psnr_y", "ssim_y", "lpips")
"""Metrics of held-out patches whose best epoch the page names."""


class Table(NamedTuple):
    """A table whose first `text_columns` columns are text and the others numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int
    wraps: bool = False
    """Whether text may break into lines."""


def describe_run(run: Path) -> str:
    """Return one line on preset, device, data set and versions; empty where run.json is missing or foreign."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((run / "run.json").read_text())
        precision = str(about["precision"]).partition(" (")[0]
        return (
            f"preset {about['preset']} · {about['device']} · {precision} · data set"
            f" {about['dataset_sha256'][:12]} · usrgan {about['usrgan']}, torch {about['versions']['torch']}"
        )
    return ""


def overview_table(rows: Rows, stages: Sequence[str]) -> Table | None:
    """Return a row for each stage: epochs, best metrics, speed; None before the first epoch has ended."""
    if not rows:
        return None
    measured = [name for name in BEST if any(f"val_{name}" in row for row in rows)]
    lines = []
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        seconds = [1 / max(row["patches_per_s"], 1e-9) for row in own]  # per patch, of each epoch
        waited = sum(row["data_wait"] * second for row, second in zip(own, seconds, strict=True))
        lines.append(
            (
                stage,
                f"{own[-1]['epoch']:,}",
                f"{own[-1]['patches_seen']:,}",
                *(_best(own, name) for name in measured),
                f"{len(own) / sum(seconds):,.1f}",
                f"{waited / sum(seconds):.1%}",
            )
        )
    titles = [f"best {TITLES[name]}" + ", dB" * name.startswith("psnr") for name in measured]
    head = ["stage", "epochs", "patches", *titles, "patches/s", "data wait"]
    return Table(head, lines, text_columns=1)


def _best(rows: Rows, name: str) -> str:
    values = select_series(rows, f"val_{name}")
    if not values:
        return "not measured"
    epoch, best = (min if name == "lpips" else max)(values, key=lambda each: each[1])
    return f"{format_value(name, best)} (epoch {epoch:g})"


def evaluation_table(evaluation: dict[str, Any]) -> Table | None:
    """Return the rows of `eval-sr`; None where there are none."""
    if not evaluation:
        return None
    names = [name for name in TITLES if all(name in row for row in evaluation["rows"])]
    lines = [
        (
            row["set"],
            row["model"],
            str(row["images"]),
            *(format_value(name, row[name]) for name in names),
        )
        for row in evaluation["rows"]
    ]
    return Table(["set", "model", "images", *(TITLES[name] for name in names)], lines, 2)


def read_evaluation(run: Path) -> dict[str, Any]:
    """Return the output of `eval-sr --json`, if the run folder holds it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((run / "evaluation.json").read_text())
        if (
            found["rows"]
            and isinstance(found["protocol"], str)
            and all(map(_is_row, found["rows"]))
        ):
            return dict(found)
    return {}


def _is_row(row: dict[str, Any]) -> bool:
    """Return whether a row has the fields and types of `eval-sr --json`: another program may have written the file."""
    words = all(isinstance(row[name], str) for name in ("set", "model"))
    values = [row["images"], *(row[name] for name in TITLES if name in row)]
    words = words and all(isinstance(each["image"], str) for each in row["per_image"])
    return words and all(isinstance(value, int | float) for value in values)


def deviations_table(path: Path, stages: Sequence[Stage]) -> Table | str:
    """Return the settings in which the stages that ran deviate from the paper, or why they are unknown."""
    if not stages:
        return "No stage has ended an epoch yet."
    deviations: dict[tuple[str, str, str], list[str]] = {}
    for stage in stages:
        try:
            ours = load_config(str(path), stage=stage)
        except UsageError as error:
            return f"Unknown: this version of usrgan cannot read the settings. {error}"
        papers = load_config(PAPER_PRESET, stage=stage)
        for name, (mine, theirs) in list_deviations(ours, papers, stage=stage).items():
            deviations.setdefault((name, str(mine), str(theirs)), []).append(stage)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((path.parent / "run.json").read_text())
        for name, (mine, theirs) in list_patch_deviations(about["patches"]).items():
            deviations[name, str(mine), str(theirs)] = list(stages)
    rows = [(" and ".join(deviating), *setting) for setting, deviating in deviations.items()]
    return Table(["stage", "setting", "here", "paper"], rows, text_columns=4, wraps=True)
