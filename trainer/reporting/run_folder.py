"""The run folder: settings, measurements and environment of a run.

config.toml     the resolved settings of both stages; `--config RUN/config.toml` takes it again
run.json        versions, device, PIL flavour, data set
metrics.jsonl   one line per epoch and stage
samples/        held-out patches: bicubic, the generator's, the truth
checkpoints/    see `trainer.runs.checkpoint`
report.html     all of it on one page, and its figures in figures/
"""

from __future__ import annotations

import contextlib
import json
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from shards.errors import ConfigError
from shards.format import png
from shards.format.manifest import Manifest
from shards.format.png import RGB8
from shards.images import resize
from shards.io import atomic
from shards.version import __version__
from trainer.config.load import load_config
from trainer.config.paper import describe_patches
from trainer.config.schema import STAGES, Config, Stage
from trainer.config.write import config_to_toml
from trainer.device import describe_device, describe_precision, use_bf16

METRICS = "metrics.jsonl"
_ALWAYS = {"stage", "epoch", "patches_seen", "patches_per_s", "data_wait"}
"""Fields of every line of it."""


def write_run_header(
    run: Path,
    *,
    stage: Stage,
    config: Config,
    preset: str,
    manifest: Manifest,
    device: torch.device,
    speed: dict[str, str],
) -> None:
    """Write `config.toml` and `run.json`; the other stage's settings stay as they were."""
    path = run / "config.toml"
    configs: dict[Stage, Config] = {}
    for name in STAGES:
        configs[name] = config
        if name != stage and path.is_file():
            with contextlib.suppress(ConfigError):  # a hand-edited file is replaced
                configs[name] = load_config(str(path), stage=name)
    atomic.write_file(path, config_to_toml(configs).encode())
    described = {
        "usrgan": __version__,
        "preset": preset,
        "device": describe_device(device),
        "bf16": use_bf16(config, device),
        "precision": describe_precision(config, device),
        "speed": speed,
        "dataset_sha256": manifest.dataset_sha256,
        "patches": describe_patches(manifest),
        "lr_made_by": " ".join((manifest.resize.implementation, manifest.resize.version)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "PIL": " ".join(resize.describe_implementation()),
        },
    }
    content = json.dumps(described, indent=2, sort_keys=True) + "\n"
    atomic.write_file(run / "run.json", content.encode())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return all lines of `metrics.jsonl`; truncated and foreign lines are omitted."""
    path = run / METRICS
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.keys() >= _ALWAYS:
                rows.append(row)
    return rows


def append_metrics(run: Path, row: dict[str, Any]) -> None:
    """Append a line to `metrics.jsonl`."""
    atomic.append_line(run / METRICS, json.dumps(row))


def rewind_metrics(run: Path, *, stage: Stage, patches_seen: int) -> None:
    """Remove lines that a killed run logged after the checkpoint from which it resumes."""
    rows = read_metrics(run)
    kept = [row for row in rows if row["stage"] != stage or row["patches_seen"] <= patches_seen]
    content = "".join(json.dumps(row) + "\n" for row in kept).encode()
    path = run / METRICS
    if path.is_file() and path.read_bytes() != content:
        atomic.write_file(path, content)


def write_sample(run: Path, *, stage: Stage, patches_seen: int, picture: RGB8) -> None:
    """Write a picture of held-out patches into `samples/`."""
    folder = run / "samples"
    atomic.make_folder(folder)
    atomic.write_file(folder / f"{stage}-{patches_seen:012d}.png", png.encode_rgb(picture))
