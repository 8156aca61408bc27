"""The run folder: what a run was, what it measured, and which device it used.

config.toml     the resolved settings of both stages; `--config RUN/config.toml` takes it again
run.json        versions, device, PIL flavour, data set
metrics.jsonl   one line per epoch and stage
samples/        held-out patches: bicubic, the generator's, the truth
checkpoints/    see `trainer.checkpoint`
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

from shards import __version__, files, png, resize
from shards.errors import ConfigError, UsageError
from shards.manifest import Manifest
from shards.png import RGB8
from trainer.config.load import load_config
from trainer.config.paper import describe_patches
from trainer.config.schema import STAGES, Config, Stage
from trainer.config.write import config_to_toml
from trainer.ranks import ALONE, Ranks

METRICS = "metrics.jsonl"
_ALWAYS = {"stage", "epoch", "patches_seen", "patches_per_s", "data_wait"}
"""What each line of it holds."""


def choose_device(wanted: str, ranks: Ranks = ALONE) -> torch.device:
    """`cpu`, `cuda` or `auto`; each of several ranks of a machine has a GPU of its own.

    Raises:
        UsageError: there is no CUDA device, or not one for each rank.
    """
    if ranks.world > 1 and wanted != "cpu":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < ranks.local_world:
            raise UsageError(
                f"--gpus: {ranks.local_world} processes were asked for, and torch sees {found} CUDA devices;"
                " ask for as many as there are, or for CPU processes with --device cpu"
            )
        return torch.device("cuda", ranks.local)
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: this machine has no CUDA device that torch sees; use --device cpu"
        )
    device = torch.device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda:0")  # threads are told which, and that wants a number
    return device


def use_bf16(config: Config, device: torch.device) -> bool:
    """Whether the steps run under bf16 autocast: "auto" means where the device computes in it.

    Raises:
        UsageError: fp16 is asked of a device that is no GPU.
    """
    if config.precision == "fp16" and device.type != "cuda":
        raise UsageError(
            "precision = fp16: needs a CUDA device; use bf16 or fp32, or auto, which chooses"
        )
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe_precision(config: Config, device: torch.device) -> str:
    """bf16, fp16 or fp32, and what becomes of the gradients."""
    if config.precision == "fp16":
        return "fp16 with a GradScaler"
    return "bf16 (float32's range: no GradScaler)" if use_bf16(config, device) else "fp32"


def describe_device(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    threads = torch.get_num_threads()
    return f"CPU ({name}, {threads} thread{'s' * (threads != 1)})"


def write_header(
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
    files.write_file(path, config_to_toml(configs).encode())
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
            "PIL": " ".join(resize.implementation()),
        },
    }
    content = json.dumps(described, indent=2, sort_keys=True) + "\n"
    files.write_file(run / "run.json", content.encode())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`; a line that a crash cut off, or that is none of ours, is left out."""
    path = run / METRICS
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.keys() >= _ALWAYS:
                rows.append(row)
    return rows


def append_metrics(run: Path, row: dict[str, Any]) -> None:
    """Add a line to `metrics.jsonl`."""
    files.append_line(run / METRICS, json.dumps(row))


def rewind_metrics(run: Path, *, stage: Stage, patches_seen: int) -> None:
    """Drop what a killed run logged after the checkpoint that is resumed from."""
    rows = read_metrics(run)
    kept = [row for row in rows if row["stage"] != stage or row["patches_seen"] <= patches_seen]
    content = "".join(json.dumps(row) + "\n" for row in kept).encode()
    path = run / METRICS
    if path.is_file() and path.read_bytes() != content:
        files.write_file(path, content)


def write_sample(run: Path, *, stage: Stage, patches_seen: int, picture: RGB8) -> None:
    """Put a strip of held-out patches into `samples/`."""
    folder = run / "samples"
    files.make_folder(folder)
    files.write_file(folder / f"{stage}-{patches_seen:012d}.png", png.encode_rgb(picture))
