"""`bench-sr data`: the reader beside webdataset, and the cost of starting and resuming.

    python -m trainer.bench.data FOLDER ROUNDS PAIRS BATCH

is the measuring process, in which webdataset finds a PIL that decodes PNG. FOLDER holds the same patches as `png`,
`webp` and `raw` shards. It prints a list of `Round` as JSON.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from shards.errors import UsageError, UsrganError
from shards.format import png
from shards.format.png import RGB8
from shards.read.dataset import open_dataset
from trainer.bench.data_wait import run_fake_training
from trainer.bench.prep import (
    PREP_SHARDS,
    describe_host,
    describe_versions,
    format_ratio,
    measure_command,
    run_module,
)
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader
from trainer.data.sampler import steps_per_pass

CODECS = ("png", "webp", "raw")
WORKERS = (0, 1, 2)
WARM_UP_PAIRS = 1000
"""Pairs read before the clock starts, because fresh memory costs more than used memory."""
FIRST_BATCHES = 5
STEP_MS = 10.0
_STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
"""A PIL that decodes PNG and WebP, where `make test` installed one; the PIL of training has no codecs."""


class Round(msgspec.Struct, frozen=True):
    """Times of one round, seconds."""

    seconds: dict[str, tuple[float, float]]
    """CPU time and wall time of each reader: `png 0` (codec and workers), `png webdataset`."""
    fresh: float
    """From opening the data set to the first batch of a pass."""
    resumed: float
    """The same at 90 % of a pass."""
    data_wait: float
    """Share of a loop of STEP_MS steps that waits for its next batch."""


class Rate(msgspec.Struct, frozen=True):
    """Speed of one reader: medians over the rounds."""

    pairs_per_s: float
    pairs_per_s_per_core: float
    """Per second of CPU time of all threads."""
    megabytes_per_s: float
    """Decoded."""


class Data(msgspec.Struct, frozen=True):
    """Medians over the rounds of one run; each ratio is formed within one round, of CPU times."""

    pairs: int
    """Pairs that each reader reads in each round."""
    batch_size: int
    rates: dict[str, Rate]
    """By codec and workers (`png 0`), and by codec of webdataset (`png webdataset`)."""
    png_over_webdataset: float
    """Our reader without workers over `wds.WebDataset(...).decode("rgb8")`, on the same PNG shards."""
    raw_over_webdataset: float
    """The same on the same raw shards."""
    fresh_ms: float
    resumed_ms: float
    resume_over_fresh: float
    data_wait_fraction: float
    """Share of 10 ms steps with two workers that waits for PNG shards."""
    spread: dict[str, list[float]]
    """Each ratio by round."""
    machine: str
    versions: dict[str, str]
    command: str


def bench_data(
    src: Path | None, *, pairs: int, rounds: int, batch_size: int, say: Callable[[str], None]
) -> Data:
    """Make shards in a temporary folder, and measure `rounds` rounds in one process.

    Raises:
        UsageError: there are no photos, or too few for a batch.
        UsrganError: prep-shards or the measuring process failed.
    """
    pairs = -(-pairs // batch_size) * batch_size  # whole batches
    if src is not None and not src.is_dir():
        raise UsageError(f"--src {src}: no such folder; name a folder of photos")
    with tempfile.TemporaryDirectory(prefix="bench-sr-") as name:
        folder = Path(name)
        photos = src or make_synthetic_photos(folder / "photos")
        count = max(sum(path.is_file() for path in photos.rglob("*")), 1)
        for codec in CODECS:
            say(f"making {codec} shards")
            options = ["--codec", codec, "--patches-per-image", str(max(-(-pairs // count), 1))]
            where = ["--src", str(photos), "--out", str(folder / codec), "--json"]
            measure_command([*PREP_SHARDS, *where, *options])
        manifest = open_dataset(folder / "png").manifest
        if (training := manifest.splits["train"].samples) < batch_size:
            raise UsageError(
                f"--batch-size {batch_size}: the photos give only {training} training pairs;"
                " lower it, or raise --pairs"
            )
        say(f"reading {pairs:,} pairs in {rounds} rounds")
        found = _measure_in_process(folder, rounds, pairs, batch_size)
    pixels = sum(side**2 for side in (manifest.hr_size, manifest.hr_size // manifest.scale))
    ratios = {
        "png_over_webdataset": [_ratio(each, "png webdataset", "png 0") for each in found],
        "raw_over_webdataset": [_ratio(each, "raw webdataset", "raw 0") for each in found],
        "resume_over_fresh": [each.resumed / each.fresh for each in found],
        "data_wait_fraction": [each.data_wait for each in found],
    }
    return Data(
        pairs=pairs,
        batch_size=batch_size,
        rates=_compute_rates(found, pairs, megabytes=3 * pixels / 1e6),
        fresh_ms=round(1e3 * statistics.median(each.fresh for each in found), 1),
        resumed_ms=round(1e3 * statistics.median(each.resumed for each in found), 1),
        spread={name: [round(value, 4) for value in values] for name, values in ratios.items()},
        machine=describe_host(),
        versions={
            **describe_versions(),
            "torch": str(torch.__version__),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("isal", "webdataset")},
        },
        command=f"bench-sr data{f' --src {src}' if src else ''} --pairs {pairs} --rounds {rounds}"
        f" --batch-size {batch_size}",
        **{name: round(statistics.median(values), 4) for name, values in ratios.items()},
    )


def format_result(result: Data) -> list[str]:
    """The result as lines of text."""
    resume = f"first batch at 90 % of a pass ({result.resumed_ms:.0f} ms) over fresh"
    rows = {
        "png over webdataset, per core": "png_over_webdataset",
        "raw over webdataset, per core": "raw_over_webdataset",
        resume: "resume_over_fresh",
        "share of 10 ms steps that waits for data": "data_wait_fraction",
    }
    return [
        f"{'':<18} {'pairs/s':>9} {'per core':>9} {'MB/s':>8}",
        *(
            f"  {name:<16} {rate.pairs_per_s:>9,.0f} {rate.pairs_per_s_per_core:>9,.0f}"
            f" {rate.megabytes_per_s:>8,.0f}"
            for name, rate in result.rates.items()
        ),
        *(format_ratio(title, name, result) for title, name in rows.items()),
    ]


def make_synthetic_photos(
    folder: Path, *, count: int = 12, height: int = 768, width: int = 1024
) -> Path:
    """Write noise whose amplitude falls with the frequency, with correlated colours; returns the folder.

    With this exponent, patches deflate to 0.47 of their size, as patches of real photos do.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / width) ** 1.6

    def make_plane() -> npt.NDArray[np.float64]:
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling)
        return np.asarray(noise / noise.std())

    for number in range(count):
        luma = make_plane()
        colours = np.stack([luma + 0.1 * make_plane() for _ in range(3)], axis=2)
        image: RGB8 = np.clip(128 + 50 * colours, 0, 255).astype(np.uint8)
        (folder / f"{number:03d}.png").write_bytes(png.encode_rgb(image))
    return folder


def read_ours(folder: Path, pairs: int, batch: int, workers: int) -> tuple[float, float]:
    """CPU and wall seconds of our reader; its workers are threads."""
    split, config = open_dataset(folder).split("train"), DataConfig(workers=workers)
    with closing(
        PatchLoader(split, seed=0, batch_size=batch, first_step=0, config=config)
    ) as stream:
        return _time_items(stream, pairs // batch, warm_up=WARM_UP_PAIRS // batch)


def read_webdataset(folder: Path, pairs: int) -> tuple[float, float]:
    """CPU and wall seconds of webdataset's own decoder in this process, sample by sample."""
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    stream = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8").repeat()
    return _time_items(iter(stream), pairs, warm_up=WARM_UP_PAIRS)


def time_first_batch(folder: Path, batch: int, *, at: float) -> float:
    """Seconds from opening the data set to its first batch, at a fraction of a pass."""
    started = time.perf_counter()
    split = open_dataset(folder).split("train")
    step = int(at * steps_per_pass(len(split), batch))
    config = DataConfig()
    with closing(
        PatchLoader(split, seed=0, batch_size=batch, first_step=step, config=config)
    ) as stream:
        next(stream)
        return time.perf_counter() - started


def _measure_in_process(folder: Path, rounds: int, pairs: int, batch_size: int) -> list[Round]:
    """Rounds of a process whose PIL decodes PNG."""
    paths = [str(_STOCK_PILLOW)] if _STOCK_PILLOW.is_dir() else []
    paths += [path for path in sys.path if path]
    try:
        output = run_module(
            "trainer.bench.data",
            *map(str, (folder, rounds, pairs, batch_size)),
            environ={"PYTHONPATH": os.pathsep.join(paths)},
        )
    except UsrganError as error:
        raise UsrganError(
            f"{error}; webdataset decodes with PIL, which must decode PNG and WebP here:"
            f" pip install --no-deps --target {_STOCK_PILLOW} pillow"
        ) from None
    return msgspec.json.decode(output, type=list[Round])


def _measure_round(folder: Path, pairs: int, batch: int) -> Round:
    seconds = {}
    for codec in CODECS:
        seconds[f"{codec} webdataset"] = read_webdataset(folder / codec, pairs)
        for workers in WORKERS:
            seconds[f"{codec} {workers}"] = read_ours(folder / codec, pairs, batch, workers)
    shards = folder / "png"
    starts = [
        (time_first_batch(shards, batch, at=0), time_first_batch(shards, batch, at=0.9))
        for _ in range(FIRST_BATCHES)
    ]
    fresh, resumed = (statistics.median(times) for times in zip(*starts, strict=True))
    fake = run_fake_training(
        shards, step_ms=STEP_MS, batch_size=batch, steps=200, config=DataConfig()
    )
    return Round(seconds, fresh, resumed, fake.data_wait_fraction)


def _time_items(stream: Iterator[object], count: int, *, warm_up: int) -> tuple[float, float]:
    for _ in islice(stream, warm_up):
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in islice(stream, count):
        pass
    return time.process_time() - cpu, time.perf_counter() - wall


def _ratio(found: Round, slow: str, fast: str) -> float:
    return found.seconds[slow][0] / found.seconds[fast][0]


def _compute_rates(rounds: list[Round], pairs: int, *, megabytes: float) -> dict[str, Rate]:
    """Rates by reader; a decoded pair has `megabytes`."""
    rates = {}
    for name in rounds[0].seconds:
        cpu, wall = (statistics.median(each.seconds[name][i] for each in rounds) for i in (0, 1))
        rates[name] = Rate(
            pairs_per_s=round(pairs / wall),
            pairs_per_s_per_core=round(pairs / cpu),
            megabytes_per_s=round(megabytes * pairs / wall, 1),
        )
    return rates


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rounds, pairs, batch = map(int, sys.argv[2:])
    found = [_measure_round(Path(sys.argv[1]), pairs, batch) for _ in range(rounds)]
    sys.stdout.buffer.write(msgspec.json.encode(found))
