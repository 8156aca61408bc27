"""How fast batches come, one way beside the other; run by `bench-sr data` as a process of its own.

    python -m trainer.bench.reading FOLDER ROUNDS PAIRS BATCH

FOLDER holds the same photos as `png`, `webp` and `raw` shards and as single files in `loose`. Prints JSON:
per round the CPU seconds and wall seconds of each way for so many pairs, and the seconds to a first batch.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.format.png import RGB8
from shards.read.dataset import open_dataset
from trainer.bench.wait import fake_train
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader
from trainer.data.sampler import CHUNK_SIZE, steps_per_pass

CODECS = ("png", "webp", "raw")
WORKERS = (0, 1, 2)
WARM = 1000
"""Pairs that are read before the clock starts: fresh memory costs what used memory does not."""
FIRST_BATCHES = 5
STEP_MS = 10.0
Seconds = tuple[float, float]
"""CPU of this process and its children, and wall."""


class Loose(Dataset[tuple[RGB8, RGB8]]):
    """HR and LR patches as single PNG files, read by OpenCV: the way of BasicSR's PairedImageDataset."""

    def __init__(self, folder: Path) -> None:
        self.hr = sorted(folder.glob("*.hr.png"))
        self.lr = sorted(folder.glob("*.lr.png"))

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, number: int) -> tuple[RGB8, RGB8]:
        return _read(self.lr[number]), _read(self.hr[number])


def ours(folder: Path, pairs: int, batch: int, workers: int) -> Seconds:
    """Batches of our reader; threads, so all CPU time is this process's."""
    split = open_dataset(folder).split("train")
    config = DataConfig(workers=workers)
    stream = PatchLoader(split, seed=0, batch_size=batch, first_step=0, config=config)
    with closing(stream):
        return _timed(lambda: stream, pairs // batch, warm=WARM // batch)


def webdataset(folder: Path, pairs: int) -> Seconds:
    """webdataset's own decoder in this process, sample by sample."""
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    read = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8").repeat()
    return _timed(lambda: read, pairs, warm=WARM)


def loose(folder: Path, pairs: int, batch: int, workers: int) -> Seconds:
    """Single files through torch's loader, shuffled; its workers are processes, counted when they have ended."""
    found = Loose(folder)
    order = np.resize(np.random.default_rng(0).permutation(len(found)), pairs).tolist()

    def read() -> Iterable[object]:
        return DataLoader(found, batch_size=batch, sampler=order, num_workers=workers)

    return _timed(read, None, warm=0)


def first_batch(folder: Path, batch: int, *, at: float) -> float:
    """Seconds from opening the data set to its first batch, at a part of a pass."""
    started = time.perf_counter()
    split = open_dataset(folder).split("train")
    step = int(at * steps_per_pass(len(split), batch))
    config = DataConfig()
    with closing(
        PatchLoader(split, seed=0, batch_size=batch, first_step=step, config=config)
    ) as found:
        next(found)
        return time.perf_counter() - started


def bytes_on_resume(folder: Path, batch: int) -> dict[str, float]:
    """What is read for the first batch at 90 % of a pass, per lane, beside the largest chunk."""
    split = open_dataset(folder).split("train")
    step = int(0.9 * steps_per_pass(len(split), batch))
    config = DataConfig(workers=0)
    with closing(
        PatchLoader(split, seed=0, batch_size=batch, first_step=step, config=config)
    ) as found:
        next(found)
    read = split.ranges.bytes_read / batch
    sizes = []
    for first in range(0, len(split), CHUNK_SIZE):
        before = split.ranges.bytes_read
        split.block(first, min(first + CHUNK_SIZE, len(split)))
        sizes.append(split.ranges.bytes_read - before)
    return {"resume_bytes_per_lane": read, "chunk_bytes": float(max(sizes))}


def measure(folder: Path, rounds: int, pairs: int, batch: int) -> dict[str, object]:
    """All ways one after the other, so often as there are rounds."""
    found: list[dict[str, Seconds | float]] = []
    for _ in range(rounds):
        row: dict[str, Seconds | float] = {}
        for codec in CODECS:
            row[f"{codec} webdataset"] = webdataset(folder / codec, pairs)
            for workers in WORKERS:
                row[f"{codec} {workers}"] = ours(folder / codec, pairs, batch, workers)
        for workers in WORKERS:
            row[f"loose {workers}"] = loose(folder / "loose", pairs, batch, workers)
        times = [
            (first_batch(folder / "png", batch, at=0), first_batch(folder / "png", batch, at=0.9))
            for _ in range(FIRST_BATCHES)
        ]
        row["fresh"], row["resumed"] = (
            statistics.median(each) for each in zip(*times, strict=True)
        )
        waited = fake_train(
            folder / "png", step_ms=STEP_MS, batch_size=batch, steps=200, config=DataConfig()
        )
        row["data_wait"] = waited.data_wait_fraction
        found.append(row)
    return {"rounds": found, **bytes_on_resume(folder / "png", batch)}


def _timed(start: Callable[[], Iterable[object]], count: int | None, *, warm: int) -> Seconds:
    stream = iter(start()) if warm else None
    if stream is not None:
        for _ in islice(stream, warm):
            pass
    cpu, wall = _cpu(), time.perf_counter()
    for _ in islice(stream if stream is not None else iter(start()), count):
        pass
    return _cpu() - cpu, time.perf_counter() - wall


def _cpu() -> float:
    spent = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        spent += used.ru_utime + used.ru_stime
    return spent


def _read(path: Path) -> RGB8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image is not None, path
    return np.asarray(image, np.uint8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    numbers = [int(each) for each in sys.argv[2:]]
    print(json.dumps(measure(Path(sys.argv[1]), *numbers)))  # noqa: T201  read by `bench-sr`
