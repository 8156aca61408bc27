"""What a step asks of the device: operations or kernels, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.bench.machine import synchronise

_FREE = ("view", "detach", "alias", "as_strided", "permute", "expand", "slice", "split", "unbind")
"""Operations that touch no data, by the start of their names."""


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as torch has it
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  as torch has it
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        self.count += not func.__name__.startswith(_FREE)
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object], device: torch.device) -> int:
    """Kernels that a GPU runs, or operations of ATen that touch data on a CPU."""
    if device.type != "cuda":
        with _Counting() as counting:
            work()
        return int(counting.count)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        work()
        synchronise(device)
    return sum(event.device_type.name == "CUDA" for event in profiler.events() or ())


def peak_mib(work: Callable[[], object], device: torch.device) -> float | None:
    """GPU memory at its peak during `work`, above none at all; None on a CPU, where nobody counts."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
