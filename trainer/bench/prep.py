"""`bench-sr prep`: prep-shards on real photos, beside its floor and beside BasicSR's way."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shards.errors import UsageError
from shards.images import resize
from trainer.bench.process import Measured, measure

PEER_ROUNDS = 3
"""BasicSR's way takes most of the time, and is an order of magnitude away, not percents."""
PREP = (sys.executable, "-c", "from pipeline.cli import main; main()")


class Prep(msgspec.Struct, frozen=True):
    """Medians over the rounds of one run; ratios are of the same round."""

    photos: int
    pairs: int
    megabytes: float
    """Of the shards."""
    workers: int
    photos_per_s: float
    megabytes_per_s: float
    cpu_over_floor: float
    """CPU time of prep-shards with one worker over that of decoding, resizing and encoding once."""
    parallel_efficiency: float
    """Wall time with one worker over that with all, per worker."""
    floor_efficiency: float
    """The same of the bare work, done by as many processes that share nothing: what the machine allows."""
    speedup_over_basicsr_way: float
    """Wall time, both with all workers."""
    peak_mib_per_worker: float
    """The largest process."""
    spread: dict[str, list[float]]
    """Each ratio, round by round."""
    machine: str
    versions: dict[str, str]
    command: str


def bench_prep(
    src: Path, *, workers: int, rounds: int, options: Sequence[str], say: Callable[[str], None]
) -> Prep:
    """Measure `rounds` times, BasicSR's way at most PEER_ROUNDS; data sets are made in a temporary folder.

    Raises:
        UsageError: there are no photos.
        UsrganError: prep-shards failed.
    """
    if not src.is_dir():
        raise UsageError(f"--src {src}: there is no such folder of photos")
    ratios: dict[str, list[float]] = {
        name: []
        for name in (
            "cpu_over_floor", "parallel_efficiency", "floor_efficiency", "speedup_over_basicsr_way",
        )
    }  # fmt: skip
    many: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench-sr-") as folder:
        out = Path(folder)
        made = out / "made"
        _prep(src, made, workers, options)  # photos in the page cache, modules compiled
        _prep(src, out / "ours", workers, options)  # and memory beside that for a second data set
        _clear(out / "ours")
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: prep-shards and its floor")
            floor = measure(_module("floor", src, made, 1))
            floors = measure(_module("floor", src, made, workers))
            ran = {}  # each is first as often as second: a machine's clock drifts
            for count in sorted({1, workers}, reverse=number % 2 == 1):
                ran[count] = _prep(src, out / "ours", count, options)
                _clear(out / "ours")
            many.append(ran[workers])
            ratios["cpu_over_floor"].append(ran[1].cpu / float(floor.output))
            ratios["parallel_efficiency"].append(ran[1].wall / ran[workers].wall / workers)
            ratios["floor_efficiency"].append(floor.wall / floors.wall)
        # by itself: where gigabytes were written and deleted, a virtual machine pays for fresh memory
        for number in range(min(rounds, PEER_ROUNDS)):
            say(f"round {number + 1} of {min(rounds, PEER_ROUNDS)}: BasicSR's way")
            ours = _prep(src, out / "ours", workers, options)
            _clear(out / "ours")
            peer = measure(_module("basicsr", src, made, out / "peer", workers))
            _clear(out / "peer")
            ratios["speedup_over_basicsr_way"].append(peer.wall / ours.wall)
    report = json.loads(many[-1].output)
    wall = statistics.median(each.wall for each in many)
    megabytes = report["bytes"] / 1e6
    return Prep(
        photos=report["photos"]["found"],
        pairs=sum(report["pairs"].values()),
        megabytes=round(megabytes, 1),
        workers=workers,
        photos_per_s=round(report["photos"]["found"] / wall, 2),
        megabytes_per_s=round(megabytes / wall, 1),
        peak_mib_per_worker=round(max(each.peak_mib for each in many), 1),
        spread={name: [round(value, 3) for value in values] for name, values in ratios.items()},
        machine=f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}",
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "PIL": " ".join(resize.describe_implementation()),
        },
        command=f"bench-sr prep --src {src} --workers {workers} --rounds {rounds}",
        **{name: round(statistics.median(values), 3) for name, values in ratios.items()},
    )


def _clear(folder: Path) -> None:
    """What is on its way to the disk, or keeps memory, must not slow the next one."""
    shutil.rmtree(folder)
    os.sync()


def _prep(src: Path, out: Path, workers: int, options: Sequence[str]) -> Measured:
    where = ["--src", str(src), "--out", str(out), "--workers", str(workers), "--json"]
    return measure([*PREP, *where, *options])


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"trainer.bench.{name}", *map(str, arguments)]


def lines(found: Prep) -> list[str]:
    """The result for a person."""

    def row(what: str, name: str, value: float) -> str:
        rounds = ", ".join(f"{each:.2f}" for each in found.spread[name])
        return f"  {what:<44} {value:6.2f}   ({rounds})"

    return [
        f"prep-shards: {found.photos} photos, {found.pairs:,} pairs, {found.megabytes:,.1f} MB"
        f" with {found.workers} workers: {found.photos_per_s:.2f} photos/s, {found.megabytes_per_s:.1f} MB/s",
        row("CPU time over decode + resize + encode once", "cpu_over_floor", found.cpu_over_floor),
        row("parallel efficiency", "parallel_efficiency", found.parallel_efficiency),
        row("the same of the bare work", "floor_efficiency", found.floor_efficiency),
        row("speed over BasicSR's way", "speedup_over_basicsr_way", found.speedup_over_basicsr_way),
        f"  {'memory of the largest process, MiB':<44} {found.peak_mib_per_worker:6.0f}",
    ]
