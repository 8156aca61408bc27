"""Interleaved timing of candidates on one device, and statistics of their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

RESAMPLINGS = 2000


def time_rounds(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    steps: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Milliseconds of each candidate's step, `steps` in a row in each of `rounds` interleaved rounds.

    One extra warm-up round is discarded. On a GPU, steps in a row are not synchronised, as in training: a step
    lasts from the end of the step before it to its own end.
    """
    time_steps = _time_on_gpu if device.type == "cuda" else _time_on_cpu
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, work in candidates.items():
            measured = time_steps(work, steps if number else 1, device)
            times[name] += measured if number else []
    return times


def _time_on_cpu(work: Callable[[], object], steps: int, _device: torch.device) -> list[float]:
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _time_on_gpu(work: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    synchronise(device)
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    synchronise(device)
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peak_mib(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak of allocated GPU memory during `work`, MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def make_matrix_product(
    device: torch.device, dtype: torch.dtype, side: int
) -> Callable[[], object]:
    """A square matrix product of 2 side³ FLOP; float32 without TF32."""
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.mm(left, right)
        torch.backends.cuda.matmul.allow_tf32 = before

    return multiply


def compute_ratio(
    slow: Sequence[float], fast: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Ratio of the medians of two samples of times, and its 95 % interval by seeded bootstrap (Efron 1979)."""
    draw = np.random.default_rng(0)
    resampled = [
        np.median(draw.choice(times, (RESAMPLINGS, len(times))), axis=1) for times in (slow, fast)
    ]
    low, high = np.quantile(resampled[0] / resampled[1], (0.025, 0.975))
    return float(np.median(slow) / np.median(fast)), (float(low), float(high))
