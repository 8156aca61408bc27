"""`bench-sr prep`: prep-shards on real photos, compared with its floor and with BasicSR; commands run as processes.

The parent of each command adopts orphans (Linux's child subreaper), so that CPU time of a fork server's workers,
which have no waiting parent, is counted, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shards.errors import UsageError, UsrganError
from shards.images import resize

PEER_ROUNDS = 3
"""Most rounds of BasicSR's way, which is slower by an order of magnitude and takes most of the time."""
PREP_SHARDS = (sys.executable, "-c", "from pipeline.cli import main; main()")
_PR_SET_CHILD_SUBREAPER = 36


class Measured(msgspec.Struct, frozen=True):
    """Cost of a command with all its processes."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all processes, user and system."""
    peak_mib: float
    """Resident memory of the largest single process."""
    output: str
    """Standard output."""


class Prep(msgspec.Struct, frozen=True):
    """Medians over the rounds of one run; each ratio is formed within one round."""

    photos: int
    pairs: int
    megabytes: float
    """Size of the shards."""
    workers: int
    photos_per_s: float
    megabytes_per_s: float
    cpu_over_floor: float
    """CPU time of prep-shards with one worker over that of decoding, resizing and encoding once."""
    parallel_efficiency: float
    """Wall time with one worker over that with all, per worker."""
    floor_efficiency: float
    """Parallel efficiency of the floor, whose processes share nothing: the limit of the machine."""
    speedup_over_basicsr_way: float
    """Ratio of wall times, both with all workers."""
    peak_mib_per_worker: float
    """Resident memory of the largest process."""
    spread: dict[str, list[float]]
    """Each ratio by round."""
    machine: str
    versions: dict[str, str]
    command: str


def bench_prep(
    src: Path, *, workers: int, rounds: int, options: Sequence[str], say: Callable[[str], None]
) -> Prep:
    """Measure `rounds` rounds, BasicSR's way at most PEER_ROUNDS; data sets lie in a temporary folder.

    Raises:
        UsageError: there are no photos.
        UsrganError: prep-shards failed.
    """
    if not src.is_dir():
        raise UsageError(f"--src {src}: no such folder; name a folder of photos")
    ratios: dict[str, list[float]] = defaultdict(list)
    all_workers: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench-sr-") as folder:
        made, ours, peer = (Path(folder) / name for name in ("made", "ours", "peer"))

        def run_prep(out: Path, count: int) -> Measured:
            where = ["--src", str(src), "--out", str(out), "--workers", str(count), "--json"]
            return measure_command([*PREP_SHARDS, *where, *options])

        def run_baseline(*arguments: object) -> Measured:
            module = [sys.executable, "-m", "trainer.bench.prep_baselines"]
            return measure_command([*module, *map(str, arguments)])

        # fill the page cache, compile modules, and take memory for a second data set beside that
        run_prep(made, workers)
        run_prep(ours, workers)
        _remove(ours)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: prep-shards and its floor")
            floor = run_baseline("floor", src, made, 1)
            floors = run_baseline("floor", src, made, workers)
            prep = {}
            for count in sorted({1, workers}, reverse=number % 2 == 1):  # clock rates drift
                prep[count] = run_prep(ours, count)
                _remove(ours)
            all_workers.append(prep[workers])
            ratios["cpu_over_floor"].append(prep[1].cpu / float(floor.output))
            ratios["parallel_efficiency"].append(prep[1].wall / prep[workers].wall / workers)
            ratios["floor_efficiency"].append(floor.wall / floors.wall)
        # afterwards: a virtual machine pays for fresh memory once gigabytes were written and deleted
        for number in range(min(rounds, PEER_ROUNDS)):
            say(f"round {number + 1} of {min(rounds, PEER_ROUNDS)}: BasicSR's way")
            wall = run_prep(ours, workers).wall
            _remove(ours)
            peer_wall = run_baseline("basicsr", src, made, peer, workers).wall
            _remove(peer)
            ratios["speedup_over_basicsr_way"].append(peer_wall / wall)
    report = json.loads(all_workers[-1].output)
    photos, megabytes = report["photos"]["found"], report["bytes"] / 1e6
    wall = statistics.median(each.wall for each in all_workers)
    return Prep(
        photos=photos,
        pairs=sum(report["pairs"].values()),
        megabytes=round(megabytes, 1),
        workers=workers,
        photos_per_s=round(photos / wall, 2),
        megabytes_per_s=round(megabytes / wall, 1),
        peak_mib_per_worker=round(max(each.peak_mib for each in all_workers), 1),
        spread={name: [round(value, 3) for value in values] for name, values in ratios.items()},
        machine=describe_host(),
        versions=describe_versions() | {"PIL": " ".join(resize.describe_implementation())},
        command=f"bench-sr prep --src {src} --workers {workers} --rounds {rounds}",
        **{name: round(statistics.median(values), 3) for name, values in ratios.items()},
    )


def format_result(result: Prep) -> list[str]:
    """The result as lines of text."""
    rows = {
        "CPU time over decode + resize + encode once": "cpu_over_floor",
        "parallel efficiency": "parallel_efficiency",
        "parallel efficiency of the floor": "floor_efficiency",
        "speed over BasicSR's way": "speedup_over_basicsr_way",
    }
    return [
        f"prep-shards: {result.photos} photos, {result.pairs:,} pairs, {result.megabytes:,.1f} MB"
        f" with {result.workers} workers: {result.photos_per_s:.2f} photos/s, {result.megabytes_per_s:.1f} MB/s",
        *(format_ratio(title, name, result) for title, name in rows.items()),
        f"  {'memory of the largest process, MiB':<52} {result.peak_mib_per_worker:7.0f}",
    ]


def format_ratio(title: str, name: str, result: msgspec.Struct) -> str:
    """One line: a ratio and its values by round, in a result with a `spread`."""
    rounds = ", ".join(f"{value:.3g}" for value in getattr(result, "spread")[name])  # noqa: B009
    return f"  {title:<52} {getattr(result, name):7.3g}   ({rounds})"


def describe_host() -> str:
    """Architecture, number of processors and operating system."""
    return f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}"


def describe_versions() -> dict[str, str]:
    """Versions that every result names."""
    return {"python": platform.python_version(), "numpy": np.__version__}


def measure_command(command: Sequence[str]) -> Measured:
    """Run a command to its end and measure it.

    Raises:
        UsageError: this is not Linux.
        UsrganError: the command failed; with its last line.
    """
    if sys.platform != "linux":
        raise UsageError("bench-sr: can count the processes of a command on Linux only; use Linux")
    # as pip leaves modules: compiled
    output = run_module("trainer.bench.prep", *command, environ={"PYTHONDONTWRITEBYTECODE": ""})
    return msgspec.json.decode(output, type=Measured)


def run_module(module: str, *arguments: str, environ: Mapping[str, str]) -> str:
    """Standard output of a Python module in its own process, with `environ` added to the environment.

    Raises:
        UsrganError: it failed; with its last line.
    """
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsrganError(f"bench-sr: {last.removeprefix('error: ')}")
    return ended.stdout


def _remove(folder: Path) -> None:
    """Delete a folder and flush the disk, so that neither slows the next command."""
    shutil.rmtree(folder)
    os.sync()


def _measure_children(command: Sequence[str]) -> int:
    """Run a command, adopt and await its orphans, print `Measured` as JSON; returns the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    start = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    wall = time.monotonic() - start
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak_mib = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    measured = Measured(wall=wall, cpu=cpu, peak_mib=peak_mib, output=ended.stdout)
    sys.stdout.buffer.write(msgspec.json.encode(measured))
    return ended.returncode


if __name__ == "__main__":
    sys.exit(_measure_children(sys.argv[1:]))
