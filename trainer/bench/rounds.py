"""Interleaved rounds: each contestant once a round, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch

from trainer.bench.machine import synchronise

RESAMPLINGS = 2000


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    steps: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Milliseconds of each contestant's step, `steps` in a row in each of `rounds`.

    One round more comes first and is thrown away. On a GPU nobody waits between steps in a row but who reads
    from the device, as in training: a step lasts from the end of the one before it to its own.
    """
    timed = _in_a_row if device.type == "cuda" else _one_by_one
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            found = timed(work, steps if number else 1, device)
            taken[name] += found if number else []
    return taken


def _one_by_one(work: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _in_a_row(work: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    synchronise(device)
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    synchronise(device)
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def ratio_of_medians(
    slow: Sequence[float], fast: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """How many times as long `slow` takes, and the 95 % interval of that by bootstrap.

    Both sides are drawn anew from their own times (Efron 1979); the draws are seeded.
    """
    draw = random.Random(0)  # noqa: S311  statistics, no secrets
    ratios = [
        statistics.median(draw.choices(slow, k=len(slow)))
        / statistics.median(draw.choices(fast, k=len(fast)))
        for _ in range(RESAMPLINGS)
    ]
    interval = percentile(ratios, 0.025), percentile(ratios, 0.975)
    return statistics.median(slow) / statistics.median(fast), interval
