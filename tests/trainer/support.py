"""Runs of `train-sr`, their weights and logs, and images that several tests share."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from click.testing import CliRunner

from trainer.cli import train_main
from trainer.weights.safetensors_io import load_tensors

SETTINGS = [
    "epochs=3", "epoch_patches=16", "batch_size=4", "generator.features=8", "generator.blocks=1",
    "generator.growth=4", "discriminator.features=4", "discriminator.dense=8", "content.layer=conv1_2",
    "checkpoint.every_patches=8", "validation.every_epochs=1", "validation.patches=4",
    "optim.warmup_patches=8", "ema.halflife_patches=16",
]  # fmt: skip


def arguments(shards: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        "--shards",
        str(shards),
        "--out",
        str(out),
        "--config",
        "tiny",
        "--device",
        "cpu",
        *settings,
        *more,
    ]


def train(shards: Path, out: Path, *more: str, code: int = 0, figures: bool = False):
    """Run the command in this process; without `figures` as where the `[report]` extra is not installed."""
    drawn = (
        contextlib.nullcontext()
        if figures
        else mock.patch("trainer.reporting.charts.is_available", bool)
    )
    with drawn:
        result = CliRunner().invoke(train_main, arguments(shards, out, *more))
    assert result.exit_code == code, result.output
    return result


def spawn(shards: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from trainer.cli import train_main; train_main()"]
    return subprocess.Popen(
        [*command, *arguments(shards, out, *more)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(run: Path) -> dict[str, bytes]:
    """Every stored tensor of a finished run, bit for bit."""
    stored = {}
    newest = [
        max((run / "checkpoints/last").glob(f"{stage}-*"))
        for stage in ("psnr", "gan")
        if list((run / "checkpoints/last").glob(f"{stage}-*"))
    ]
    for path in [*newest, *sorted((run / "checkpoints").glob("best-*/*.safetensors"))]:
        tensors, _ = load_tensors(path)
        for name, tensor in tensors.items():
            stored[f"{path.relative_to(run)} {name}"] = tensor.numpy().tobytes()
    return stored


def logged(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("patches_per_s", "data_wait")} for row in rows
    ]


def make_patch(seed: int, *, side: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
