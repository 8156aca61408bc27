"""`bench-sr data`: the reader alone, beside webdataset and loose files, and what starting and resuming cost."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch

from shards.errors import UsageError, UsrganError
from shards.format import png
from shards.format.png import RGB8
from shards.read.dataset import open_dataset
from trainer.bench.prep import PREP
from trainer.bench.process import measure

CODECS = ("png", "webp", "raw")
_STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
"""A PIL that decodes PNG and WebP, where `make test` has put one: the one of training is built without."""


class Rate(msgspec.Struct, frozen=True):
    """How fast one way reads: medians over the rounds."""

    pairs_per_s: float
    pairs_per_s_per_core: float
    """Per second of CPU time, of all its threads and processes."""
    megabytes_per_s: float
    """Decoded."""


class Data(msgspec.Struct, frozen=True):
    """Medians over the rounds of one run; ratios are of the same round and per second of CPU time."""

    pairs: int
    """Read by each way in each round."""
    batch_size: int
    rates: dict[str, Rate]
    """By codec and workers (`png 0`), peer (`png webdataset`), and `loose 0` to `loose 2`."""
    png_over_webdataset: float
    """Our reader without workers over `wds.WebDataset(...).decode("rgb8")`, on the same PNG shards."""
    raw_over_webdataset: float
    """The same on the same raw shards."""
    raw_over_webdataset_png: float
    """Our reader on raw shards over webdataset on PNG shards of the same patches."""
    png_over_loose: float
    """Over single PNG files by OpenCV and torch's loader, without workers."""
    fresh_ms: float
    """From opening the data set to the first batch of a pass."""
    resumed_ms: float
    """The same at 90 % of a pass."""
    resume_over_fresh: float
    resume_bytes_per_lane: float
    """Read for the first batch when resumed, for each patch of the batch."""
    chunk_bytes: float
    """The largest chunk of 64 pairs."""
    data_wait_fraction: float
    """Of the time of 10 ms steps with two workers, png: `bench-sr train --fake-step 10ms`."""
    spread: dict[str, list[float]]
    """Each ratio, round by round."""
    machine: str
    versions: dict[str, str]
    command: str


def bench_data(
    src: Path | None, *, pairs: int, rounds: int, batch_size: int, say: Callable[[str], None]
) -> Data:
    """Make the shards in a temporary folder, and measure `rounds` times in one process.

    Raises:
        UsageError: there are no photos, or not enough for a batch.
        UsrganError: prep-shards failed, or what measures did.
    """
    pairs = -(-pairs // batch_size) * batch_size  # batches are read whole
    if src is not None and not src.is_dir():
        raise UsageError(f"--src {src}: there is no such folder of photos")
    with tempfile.TemporaryDirectory(prefix="bench-sr-") as name:
        folder = Path(name)
        photos = src or synthetic_photos(folder / "photos")
        count = max(sum(path.is_file() for path in photos.rglob("*")), 1)
        for codec in CODECS:
            say(f"making {codec} shards")
            options = ["--codec", codec, "--patches-per-image", str(max(-(-pairs // count), 1))]
            measure([*PREP, "--src", str(photos), "--out", str(folder / codec), "--json", *options])
        size = open_dataset(folder / "png").manifest
        if (held := size.splits["train"].samples) < batch_size:
            raise UsageError(
                f"--batch-size {batch_size}: the photos give only {held} training pairs;"
                " lower it, or raise --pairs"
            )
        _extract(folder / "png", folder / "loose")
        say(f"reading {pairs:,} pairs in {rounds} rounds")
        found = _measure(folder, rounds, pairs, batch_size)
    sides = size.hr_size, size.hr_size // size.scale
    rows: list[dict[str, Any]] = found.pop("rounds")
    ratios = _ratios(rows)
    return Data(
        pairs=pairs,
        batch_size=batch_size,
        rates=_rates(rows, pairs, megabytes=3 * sum(side * side for side in sides) / 1e6),
        fresh_ms=round(1e3 * _median(rows, "fresh"), 1),
        resumed_ms=round(1e3 * _median(rows, "resumed"), 1),
        spread={name: [round(each, 4) for each in values] for name, values in ratios.items()},
        machine=f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}",
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("isal", "webdataset")},
        },
        command=f"bench-sr data{f' --src {src}' if src else ''} --pairs {pairs} --rounds {rounds}"
        f" --batch-size {batch_size}",
        **{name: round(statistics.median(values), 4) for name, values in ratios.items()},
        **{name: round(value) for name, value in found.items()},
    )


def synthetic_photos(
    folder: Path, *, count: int = 12, height: int = 768, width: int = 1024
) -> Path:
    """Noise whose amplitude falls with the frequency, the colours much alike.

    The exponent is the one at which patches deflate as those of real photos do, to 0.47 of their size.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / width) ** 1.6

    def plane() -> np.ndarray[Any, np.dtype[np.float64]]:
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling)
        return np.asarray(noise / noise.std())

    for number in range(count):
        luma = plane()
        colours = np.stack([luma + 0.1 * plane() for _ in range(3)], axis=2)
        image: RGB8 = np.clip(128 + 50 * colours, 0, 255).astype(np.uint8)
        (folder / f"{number:03d}.png").write_bytes(png.encode_rgb(image))
    return folder


def _extract(shards: Path, out: Path) -> None:
    """The training pairs as single files, as they are stored."""
    out.mkdir()
    split = open_dataset(shards).split("train")
    for position in range(len(split)):
        key, hr, _, lr = split.members(position)
        (out / f"{key:012d}.hr.png").write_bytes(hr)
        (out / f"{key:012d}.lr.png").write_bytes(lr)


def _measure(folder: Path, rounds: int, pairs: int, batch_size: int) -> dict[str, Any]:
    """What `trainer.bench.reading` prints; webdataset's decoder there gets a PIL that knows PNG."""
    paths = [str(_STOCK_PILLOW)] if _STOCK_PILLOW.is_dir() else []
    paths += [path for path in sys.path if path]
    numbers = [str(each) for each in (rounds, pairs, batch_size)]
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.bench.reading", str(folder), *numbers],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsrganError(
            f"bench-sr data: {last}; webdataset decodes by PIL, which must know PNG and WebP here:"
            f" pip install --no-deps --target {_STOCK_PILLOW} pillow"
        )
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def _ratios(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Round by round; of two ways the CPU time of the second over that of the first."""

    def over(way: str, peer: str) -> list[float]:
        return [row[peer][0] / row[way][0] for row in rows]

    return {
        "png_over_webdataset": over("png 0", "png webdataset"),
        "raw_over_webdataset": over("raw 0", "raw webdataset"),
        "raw_over_webdataset_png": over("raw 0", "png webdataset"),
        "png_over_loose": over("png 0", "loose 0"),
        "resume_over_fresh": [row["resumed"] / row["fresh"] for row in rows],
        "data_wait_fraction": [row["data_wait"] for row in rows],
    }


def _rates(rows: list[dict[str, Any]], pairs: int, *, megabytes: float) -> dict[str, Rate]:
    """`megabytes` are those of a decoded pair."""
    found = {}
    for name in (name for name, value in rows[0].items() if isinstance(value, list)):
        cpu, wall = (statistics.median(row[name][which] for row in rows) for which in range(2))
        found[name] = Rate(
            pairs_per_s=round(pairs / wall),
            pairs_per_s_per_core=round(pairs / cpu),
            megabytes_per_s=round(megabytes * pairs / wall, 1),
        )
    return found


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def lines(found: Data) -> list[str]:
    """The result for a person."""

    def row(what: str, name: str, value: float) -> str:
        rounds = ", ".join(f"{each:.3g}" for each in found.spread[name])
        return f"  {what:<52} {value:7.3g}   ({rounds})"

    return [
        f"{'':<18} {'pairs/s':>9} {'per core':>9} {'MB/s':>8}",
        *(
            f"  {name:<16} {each.pairs_per_s:>9,.0f} {each.pairs_per_s_per_core:>9,.0f}"
            f" {each.megabytes_per_s:>8,.0f}"
            for name, each in found.rates.items()
        ),
        row("png over webdataset, per core", "png_over_webdataset", found.png_over_webdataset),
        row("raw over webdataset, per core", "raw_over_webdataset", found.raw_over_webdataset),
        row(
            "raw over webdataset on png, per core",
            "raw_over_webdataset_png",
            found.raw_over_webdataset_png,
        ),
        row("png over single files, per core", "png_over_loose", found.png_over_loose),
        row(
            f"first batch at 90 % of a pass ({found.resumed_ms:.0f} ms) over fresh",
            "resume_over_fresh",
            found.resume_over_fresh,
        ),
        row(
            "part of 10 ms steps that waits for data",
            "data_wait_fraction",
            found.data_wait_fraction,
        ),
        f"  read on resume: {found.resume_bytes_per_lane / 1e6:.2f} MB per patch of the batch,"
        f" a chunk has up to {found.chunk_bytes / 1e6:.2f} MB",
    ]
