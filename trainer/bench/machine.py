"""What the machine can do at all: the rates that floors are computed from, measured in the same run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from trainer.device import describe_device

L2_BYTES = 16 * 2**20
"""Of the buffer whose reading and writing measures a GPU's second-level cache."""


class Machine(msgspec.Struct, frozen=True):
    """Rates of one device, medians of a few repetitions."""

    device: str
    versions: dict[str, str]
    threads: int
    bf16_tflops: float
    """Square matrix product, 2 FLOP for each multiplication and addition."""
    fp32_tflops: float
    """The same in float32, without TF32."""
    copy_gb_per_s: float
    """Bytes read and bytes written by a copy of a buffer far larger than any cache."""
    l2_gb_per_s: float | None
    """The same of a buffer that fits a GPU's second-level cache; None on a CPU."""
    launch_us: float
    """One operation on eight numbers, as Python issues it."""
    graph_launch_us: float | None
    """One kernel of the same inside a CUDA graph; None on a CPU."""

    def tflops(self, *, bf16: bool) -> float:
        """The rate that a training step in this precision is held against."""
        return self.bf16_tflops if bf16 else self.fp32_tflops


def measure_machine(device: torch.device, *, small: bool = False) -> Machine:
    """Measure a device: seconds on a GPU, one or two on a CPU; `small` is for tests."""
    cuda = device.type == "cuda"
    side = product_side(device, small=small)
    count = 2**14 if small else 2**28 if cuda else 2**24  # float32
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    few = torch.zeros(8, device=device)
    return Machine(
        device=describe_device(device),
        versions={"python": platform.python_version(), "torch": str(torch.__version__)}
        | ({"cuda": str(torch.version.cuda)} if cuda else {}),
        threads=torch.get_num_threads(),
        bf16_tflops=_product(device, torch.bfloat16, side),
        fp32_tflops=_product(device, torch.float32, side if small or not cuda else side // 2),
        copy_gb_per_s=_rate(2 * source.nbytes, lambda: target.copy_(source), device),
        l2_gb_per_s=_in_graph(source[: L2_BYTES // 4], 2 * L2_BYTES / 1e9) if cuda else None,
        launch_us=_seconds(lambda: _repeat(lambda: few.add_(1), 500), device) / 500 * 1e6,
        graph_launch_us=1e6 / _in_graph(few, 1.0) if cuda else None,
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], object]:
    """A square matrix product, 2 side^3 FLOP; float32 without TF32."""
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)

    def work() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.mm(left, right)
        torch.backends.cuda.matmul.allow_tf32 = before

    return work


def product_side(device: torch.device, *, small: bool) -> int:
    """How large a matrix product has to be to show the device's rate."""
    return 128 if small else 8192 if device.type == "cuda" else 1024


def _product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    return 2 * side**3 / _seconds(product(device, dtype, side), device) / 1e12


def _rate(moved: int, work: Callable[[], object], device: torch.device) -> float:
    return moved / _seconds(work, device) / 1e9


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The middle of five, after one to warm up."""
    work()
    taken = []
    for _ in range(5):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _in_graph(buffer: Tensor, worth: float, *, times: int = 200) -> float:
    """`worth` a second of adding 1 to a buffer, issued by a CUDA graph and not by Python."""
    buffer.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _repeat(lambda: buffer.add_(1), times)
    return worth * times / _seconds(graph.replay, buffer.device)
