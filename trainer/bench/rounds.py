"""Interleaved rounds: each contestant once a round, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

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

    One round more comes first and is thrown away.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            for _ in range(steps if number else 1):
                synchronise(device)
                start = time.perf_counter()
                work()
                synchronise(device)
                if number:
                    taken[name].append((time.perf_counter() - start) * 1e3)
    return taken


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
