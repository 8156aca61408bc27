"""Prints what a refactor must not change: the digest of a data set and of a short training's weights.

Run `OMP_NUM_THREADS=1 python -m tests.fingerprint` before and after; both lines must be equal on one machine.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

SETTINGS = (
    "precision=fp32", "epochs=2", "epoch_patches=32", "batch_size=8", "generator.blocks=1", "generator.features=8",
    "generator.growth=4", "discriminator.features=4", "discriminator.dense=8", "content.layer=conv1_2",
    "optim.warmup_patches=8", "validation.patches=4",
)  # fmt: skip


def make_photo(path: Path, *, seed: int, height: int, width: int) -> None:
    """Write smooth noise as BMP: integer arithmetic alone, so that its bytes are the same everywhere."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.int64)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    row, column, dy, dx = y[:, 0, 0] // 8, x[0, :, 0] // 8, y % 8, x % 8
    top = grid[row][:, column] * (8 - dx) + grid[row][:, column + 1] * dx
    bottom = grid[row + 1][:, column] * (8 - dx) + grid[row + 1][:, column + 1] * dx
    smooth = (top * (8 - dy) + bottom * dy) // 64
    image = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    assert width % 4 == 0, "rows of a BMP are padded to four bytes"
    header = struct.pack(
        "<2sIHHI IiiHHIIiiII",
        *(b"BM", 54 + image.nbytes, 0, 0, 54),
        *(40, width, height, 1, 24, 0, image.nbytes, 2835, 2835, 0, 0),
    )
    path.write_bytes(header + image[::-1, :, ::-1].tobytes())  # rows from the bottom, BGR


def run_command(module: str, function: str, *arguments: str) -> str:
    """Run one of the commands in a process of its own and return its stdout."""
    code = f"from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def digest_weights(path: Path) -> str:
    """SHA-256 over names and values of a safetensors file."""
    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Make shards and train both stages in a temporary folder, then print the digests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for seed in range(5):
            make_photo(
                folder / f"photos/{seed}.bmp",
                seed=seed,
                height=96 + 16 * seed,
                width=160 - 8 * seed,
            )
        cut = ("--hr-size", "64", "--patches-per-image", "8", "--samples-per-shard", "16")
        shards = ("--src", str(folder / "photos"), "--out", str(folder / "shards"))
        made = json.loads(
            run_command("pipeline.cli", "main", *shards, *cut, "--keep-flat", "1", "--json")
        )
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        run_command(
            "trainer.cli", "train_main", "--shards", str(folder / "shards"), "--out", str(folder / "run"),
            "--config", "tiny", "--device", "cpu", *settings,
        )  # fmt: skip
        print("dataset_sha256", made["dataset_sha256"])  # noqa: T201
        for stage in ("psnr", "gan"):
            weights = folder / f"run/checkpoints/final/{stage}.safetensors"
            print(f"{stage} weights", digest_weights(weights))  # noqa: T201


if __name__ == "__main__":
    main()
