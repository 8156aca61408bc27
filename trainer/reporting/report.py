"""A run as one self-contained page: the paper's figures, samples, settings. No network.

Shown beside what training logs: `evaluation.json` (the output of `eval-sr --json`) and the pictures
of `strips/` (`eval-sr --strips RUN/strips`), where they lie in the run folder.
"""

from __future__ import annotations

import contextlib
import html
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DamagedData, UsageError, UsrganError
from shards.format import png
from shards.format.png import RGB8
from shards.io import atomic
from trainer.config.load import PAPER_PRESET, load_config
from trainer.config.paper import list_deviations, list_patch_deviations
from trainer.config.schema import STAGES, Stage
from trainer.evaluation.comparison import tiles_of
from trainer.evaluation.tables import TITLES, format_value
from trainer.reporting import charts, page
from trainer.reporting.figures import Figure, figures_of_run, figures_of_stage, series
from trainer.reporting.run_folder import read_metrics

Rows = list[dict[str, Any]]
STAGE_TITLES = {
    "psnr": "Stage psnr: pixel loss",
    "gan": "Stage gan: pixel, content and adversarial loss",
}
BEST = ("psnr_y", "ssim_y", "lpips")
"""What is measured on held-out patches, and whose best epoch is told."""
PHOTOS = 4
"""So many strips are shown at most; the others stay in `strips/`."""
SHARE_OF_TIME = 0.02
"""A page that is written while training takes at most this part of the time."""
FIRST_GUESS = 1.0
"""Seconds that a page is taken to cost before one was made: short runs make none on the way."""


def write_report(run: Path, *, figures: bool = True) -> Path:
    """Write `RUN/report.html` from what the run folder holds, and with `figures` also `RUN/figures/`.

    Raises:
        UsageError: there is no run in that folder.
    """
    if not (run / "config.toml").is_file():
        raise UsageError(f"{run}: is no run folder (no config.toml); name one that train-sr wrote")
    rows = read_metrics(run)
    name = run.resolve().name
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    drawn = {stage: figures_of_stage(rows, stage) for stage in stages}
    whole = figures_of_run(rows)
    body = [
        f"<h1>{html.escape(name)}</h1>",
        _about(run),
        _overview(rows, stages),
        _evaluation(run),
        _photos(run),
        _section("The run", whole),
        *(_section(STAGE_TITLES[stage], drawn[stage], _samples(run, stage)) for stage in stages),
        _settings(run, stages),
    ]
    path = run / "report.html"
    atomic.write_file(path, page.page(name, body).encode(errors="backslashreplace"))
    if figures and charts.available():
        _write_figures(run / "figures", [*whole, *(each for own in drawn.values() for each in own)])
    return path


class LiveReport:
    """Keeps the page of a run that is training up to date, for a small part of its time."""

    def __init__(self, run: Path, *, warn: Callable[[str], None]) -> None:
        self._run = run
        self._warn = warn
        self._started = time.monotonic()
        self._spent = 0.0
        self._last = FIRST_GUESS
        self._told = False

    def refresh(self) -> None:
        """Write the page anew if there is time for it; what goes wrong is a warning, once."""
        begun = time.monotonic()
        if self._spent + self._last > SHARE_OF_TIME * (begun - self._started):
            return
        try:
            write_report(self._run, figures=False)
        except (UsrganError, ValueError) as error:  # ValueError: what vl-convert raises
            if not self._told:
                self._warn(f"{self._run / 'report.html'}: not written ({error}); training goes on")
            self._told = True
        self._last = time.monotonic() - begun
        self._spent += self._last


def _about(run: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((run / "run.json").read_text())
        precision = str(about["precision"]).partition(" (")[0]
        return page.note(
            f"preset {about['preset']} · {about['device']} · {precision} · data set"
            f" {about['dataset_sha256'][:12]} · usrgan {about['usrgan']}, torch {about['versions']['torch']}"
        )
    return ""


def _overview(rows: Rows, stages: Sequence[str]) -> str:
    if not rows:
        return page.note("No epoch has ended yet.")
    judged = [name for name in BEST if any(f"val_{name}" in row for row in rows)]
    lines = []
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        seconds = [1 / max(row["patches_per_s"], 1e-9) for row in own]  # for a patch of each epoch
        waited = sum(row["data_wait"] * each for row, each in zip(own, seconds, strict=True))
        lines.append(
            (
                stage,
                f"{own[-1]['epoch']:,}",
                f"{own[-1]['patches_seen']:,}",
                *(_best(own, name) for name in judged),
                f"{len(own) / sum(seconds):,.1f}",
                f"{waited / sum(seconds):.1%}",
            )
        )
    titles = [f"best {TITLES[name]}" + ", dB" * name.startswith("psnr") for name in judged]
    head = ["stage", "epochs", "patches", *titles, "patches/s", "data wait"]
    return page.table(head, lines, left=1)


def _best(rows: Rows, name: str) -> str:
    values = series(rows, f"val_{name}")
    if not values:
        return "not measured"
    epoch, best = (min if name == "lpips" else max)(values, key=lambda each: each[1])
    return f"{format_value(name, best)} (epoch {epoch:g})"


def _evaluation(run: Path) -> str:
    found = _read_evaluation(run)
    if not found:
        return ""
    names = [name for name in TITLES if all(name in row for row in found["rows"])]
    lines = [
        (row["set"], row["model"], str(row["images"]), *(format_value(n, row[n]) for n in names))
        for row in found["rows"]
    ]
    titles = ["set", "model", "images", *(TITLES[name] for name in names)]
    shown = page.table(titles, lines, left=2)
    return f"<h2>Whole images</h2>{shown}{page.note(found['protocol'])}"


def _read_evaluation(run: Path) -> dict[str, Any]:
    """What `eval-sr --json` said, if the run folder holds it."""
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
    """Whether it is what `eval-sr` tells of a model, and nothing that another program put there."""
    words = all(isinstance(row[name], str) for name in ("set", "model"))
    values = [row["images"], *(row[name] for name in TITLES if name in row)]
    words = words and all(isinstance(each["image"], str) for each in row["per_image"])
    return words and all(isinstance(value, int | float) for value in values)


def _photos(run: Path) -> str:
    """Strips of whole photos: bicubic against the last model of the table, where the table is of that photo."""
    paths = sorted((run / "strips").glob("*.png"))
    rows = _read_evaluation(run).get("rows", [])
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    scored = {f"{row['set']}-{each['image']}" for row in rows for each in row["per_image"]}
    shown = []
    for path in paths[:PHOTOS]:
        strip = _decoded(path)
        tiles = tiles_of(strip, columns=len(models) + 2) if strip is not None else []
        if len(models) > 1 and tiles and path.stem in scored:
            _, first, *_, last, truth = tiles
            shown.append(
                page.comparison((models[0], first), (models[-1], last), ("HR", truth), path.stem)
            )
        elif strip is not None:
            stem = html.escape(path.stem)
            image = page.picture(strip, stem, kind="strip")
            shown.append(f"<figure>{image}<figcaption>{stem}</figcaption></figure>")
    if not shown:
        return ""
    more = f"{len(paths) - PHOTOS} more in strips/." if len(paths) > PHOTOS else ""
    return f"<h2>Held-out photos</h2>{''.join(shown)}{page.note(more) if more else ''}"


def _section(title: str, figures: list[Figure], below: str = "") -> str:
    if not figures and not below:
        return ""
    if figures and not charts.available():
        return f"<h2>{title}</h2>{page.note(charts.HOW_TO_GET_IT)}{below}"
    drawn = "".join(page.chart(charts.svg(figure), figure.caption) for figure in figures)
    return f"<h2>{title}</h2><div class=charts>{drawn}</div>{below}"


def _samples(run: Path, stage: str) -> str:
    """The newest held-out patches: bicubic, the generator's and the truth, beside each other."""
    paths = sorted((run / "samples").glob(f"{stage}-*.png"))
    sheet = _decoded(paths[-1]) if paths else None
    if sheet is None or sheet.shape[1] % 3:
        return ""
    side = sheet.shape[1] // 3
    bicubic, made, truth = (_folded(sheet[:, at * side : (at + 1) * side]) for at in range(3))
    seen = paths[-1].stem.partition("-")[2]
    when = f" after {int(seen):,} patches of stage {stage}" if seen.isdecimal() else ""
    caption = f"Held-out patches{when}; drag the line."
    return page.comparison(("bicubic", bicubic), (f"stage {stage}", made), ("HR", truth), caption)


def _folded(column: RGB8) -> RGB8:
    """Square patches one below the other => in two columns, where they are an even number."""
    half, odd = divmod(column.shape[0], 2)
    if odd or half % column.shape[1]:
        return column
    return np.concatenate((column[:half], column[half:]), axis=1)


def _decoded(path: Path) -> RGB8 | None:
    with contextlib.suppress(OSError, DamagedData):
        return png.decode_rgb(path.read_bytes())
    return None


def _settings(run: Path, stages: Sequence[Stage]) -> str:
    path = run / "config.toml"
    text = html.escape(path.read_text(errors="replace"))
    return (
        f"<h2>Deviations from the paper</h2>{_deviations(path, stages)}"
        f"<h2>Settings</h2><details><summary>config.toml</summary><pre>{text}</pre></details>"
    )


def _deviations(path: Path, stages: Sequence[Stage]) -> str:
    """A table of the settings in which the stages that ran are not the paper's."""
    if not stages:
        return page.note("No stage has ended an epoch yet.")
    found: dict[tuple[str, str, str], list[str]] = {}
    for stage in stages:
        try:
            ours = load_config(str(path), stage=stage)
        except UsageError as error:
            return page.note(f"Not known: this version of usrgan cannot read the settings. {error}")
        papers = load_config(PAPER_PRESET, stage=stage)
        for name, (mine, theirs) in list_deviations(ours, papers, stage=stage).items():
            found.setdefault((name, str(mine), str(theirs)), []).append(stage)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((path.parent / "run.json").read_text())
        for name, (mine, theirs) in list_patch_deviations(about["patches"]).items():
            found[name, str(mine), str(theirs)] = list(stages)
    rows = [(" and ".join(deviating), *setting) for setting, deviating in found.items()]
    return page.table(["stage", "setting", "here", "paper"], rows, left=4, long=True)


def _write_figures(folder: Path, figures: list[Figure]) -> None:
    """Each figure as SVG and PNG."""
    for name, content in _drawn(figures):
        atomic.make_folder(folder)
        atomic.write_file(folder / name, content)


def _drawn(figures: list[Figure]) -> Iterator[tuple[str, bytes]]:
    for figure in figures:
        yield f"{figure.name}.svg", charts.svg(figure).encode()
        yield f"{figure.name}.png", charts.png(figure)
