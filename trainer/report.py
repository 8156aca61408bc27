"""A run as one self-contained page: figures, curves, samples, settings. No network, no script.

Shown beside what training logs: `evaluation.json` (the output of `eval-sr --json`) and the pictures
of `strips/` (`eval-sr --strips RUN/strips`), where they lie in the run folder.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import tomllib
from pathlib import Path
from typing import Any

from shards import files
from shards.errors import UsageError
from trainer.charts import Series, line_chart
from trainer.config import PAPER, STAGES, differences, load_config
from trainer.run import read_metrics

Rows = list[dict[str, Any]]
TITLES = {"psnr": "Stage psnr: pixel loss", "gan": "Stage gan: pixel, content and adversarial loss"}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.what, figcaption { color: GrayText; margin-top: .2rem; font-size: .92rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem 1rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid var(--line); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts figure { background: #fff; border-radius: 6px; padding: .4rem; }
figure { margin: 0 0 1rem; }
img { max-width: 100%; border-radius: 4px; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto; }
"""


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from what the run folder holds.

    Raises:
        UsageError: there is no run in that folder.
    """
    if not (run / "config.toml").is_file():
        raise UsageError(f"{run}: is no run folder (no config.toml); name one that train-sr wrote")
    rows = read_metrics(run)
    name = run.resolve().name
    body = [
        f"<h1>{html.escape(name)}</h1>",
        _summary(run),
        _evaluation(run),
        _pictures("Held-out photos", sorted((run / "strips").glob("*.png")), _columns(run)),
        *(_stage(run, stage, [row for row in rows if row["stage"] == stage]) for stage in STAGES),
        _settings(run),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(name)}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )
    path = run / "report.html"
    files.write_file(path, page.encode(errors="backslashreplace"))
    return path


def _summary(run: Path) -> str:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        about = json.loads((run / "run.json").read_text())
        precision = "bf16" if about["bf16"] else "fp32"
        text = (
            f"preset {about['preset']} · {about['device']} · {precision} · data set"
            f" {about['dataset_sha256'][:12]} · usrgan {about['usrgan']}, torch {about['versions']['torch']}"
        )
        return f"<p class=what>{html.escape(text)}</p>"
    return ""


def _evaluation(run: Path) -> str:
    with contextlib.suppress(OSError, json.JSONDecodeError, KeyError):
        found = json.loads((run / "evaluation.json").read_text())
        cells = "".join(
            f"<tr><td>{html.escape(row['set'])}<td>{html.escape(row['model'])}<td class=n>{row['images']}"
            f"<td class=n>{_number(row['psnr_y'], 2)}<td class=n>{_number(row['ssim_y'], 4)}"
            f"<td class=n>{_number(row['psnr_rgb'], 2)}<td class=n>{_number(row['ssim_rgb'], 4)}"
            for row in found["rows"]
        )
        head = (
            "<tr><th>set<th>model<th class=n>images<th class=n>PSNR-Y<th class=n>SSIM-Y"
            "<th class=n>PSNR-RGB<th class=n>SSIM-RGB"
        )
        protocol = html.escape(found["protocol"])
        return f"<h2>Whole images</h2><table>{head}{cells}</table><p class=what>{protocol}</p>"
    return ""


def _columns(run: Path) -> str:
    """What the strips show from left to right, by the rows of the evaluation."""
    with contextlib.suppress(OSError, json.JSONDecodeError, KeyError):
        rows = json.loads((run / "evaluation.json").read_text())["rows"]
        models = list(dict.fromkeys(row["model"] for row in rows))
        return ", ".join([*models, "the truth"])
    return ""


def _stage(run: Path, stage: str, rows: Rows) -> str:
    if not rows:
        return ""
    samples = sorted((run / "samples").glob(f"{stage}-*.png"))
    last = rows[-1]
    speed = sum(row["patches_per_s"] for row in rows) / len(rows)
    waiting = sum(row["data_wait"] for row in rows) / len(rows)
    text = (
        f"{last['patches_seen']:,} patches in {last['epoch']} epochs · {speed:,.0f} patches/s"
        f" · {waiting:.1%} of the time waiting for data"
    )
    best = _best(rows)
    charts = "".join(_charts(rows))
    shown = _pictures("", samples[-1:], "held-out patches: bicubic, the generator's, the truth")
    return f"<h2>{TITLES[stage]}</h2><p class=what>{text}</p>{best}<div class=charts>{charts}</div>{shown}"


def _best(rows: Rows) -> str:
    validated = [row for row in rows if "val_psnr_y" in row]
    if not validated:
        return ""
    psnr = max(validated, key=lambda row: row["val_psnr_y"])
    ssim = max(validated, key=lambda row: row["val_ssim_y"])
    return (
        f"<p>Best on held-out patches: PSNR-Y {psnr['val_psnr_y']:.2f} dB in epoch {psnr['epoch']},"
        f" SSIM-Y {ssim['val_ssim_y']:.4f} in epoch {ssim['epoch']}.</p>"
    )


def _charts(rows: Rows) -> list[str]:
    groups = {
        "PSNR-Y on held-out patches, dB": {"validation": "val_psnr_y"},
        "SSIM-Y on held-out patches": {"validation": "val_ssim_y"},
        "Pixel loss (L1)": {"pixel": "loss_pixel"},
        "Content loss": {"content": "loss_content"},
        "Adversarial and discriminator loss": {
            "adversarial": "loss_adversarial",
            "discriminator": "loss_discriminator",
        },
    }
    charts = []
    for title, lines in groups.items():
        series: Series = {
            label: [(row["epoch"], row[key]) for row in rows if key in row]
            for label, key in lines.items()
        }
        if any(len(points) > 1 for points in series.values()):
            charts.append(f"<figure>{line_chart(title, series)}</figure>")
    return charts


def _pictures(title: str, paths: list[Path], caption: str = "") -> str:
    if not paths:
        return ""
    figures = "".join(
        f"<figure><img alt='{html.escape(path.stem)}' src='data:image/png;base64,"
        f"{base64.b64encode(path.read_bytes()).decode()}'>"
        f"<figcaption>{html.escape(f'{path.stem}: {caption}' if caption else path.stem)}</figcaption></figure>"
        for path in paths
    )
    return (f"<h2>{html.escape(title)}</h2>" if title else "") + figures


def _settings(run: Path) -> str:
    path = run / "config.toml"
    text = path.read_text()
    deviations = []
    for stage in STAGES:
        try:
            ours, papers = load_config(str(path), stage=stage), load_config(PAPER, stage=stage)
        except (UsageError, tomllib.TOMLDecodeError):
            continue
        deviations += [
            f"<tr><td>{stage}<td>{name}<td>{html.escape(str(mine))}<td>{html.escape(str(theirs))}"
            for name, (mine, theirs) in differences(ours, papers).items()
            if not name.startswith(("data.", "validation.", "checkpoint."))
        ]
    head = "<tr><th>stage<th>setting<th>here<th>paper"
    table = (
        f"<table>{head}{''.join(deviations)}</table>"
        if deviations
        else "<p>The paper's, all of them.</p>"
    )
    return (
        f"<h2>Deviations from the paper</h2>{table}<h2>Settings</h2><pre>{html.escape(text)}</pre>"
    )


def _number(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"
