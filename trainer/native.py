"""What kernels in C need from torch: its processor's features, shapes, threads and gradients.

Threads are those of torch: the kernels' OpenMP calls find the library that torch has loaded, and with it
torch's threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from shards.io import compile_c
from shards.io.compile_c import NotHere

Backward = TypeVar("Backward", bound=Callable[..., Any])
_FLAGS = ("-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16")


class Pictures(ctypes.Structure):
    """The shape of bf16 pictures as C knows it."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("images", "height", "width", "channels"))


PICTURES = (Pictures, ctypes.c_int)
"""The last arguments of every kernel: the shape, and how many threads."""


def pictures(x: Tensor) -> tuple[Pictures, int]:
    """The last arguments for maps [b c h w] with the channels of a pixel side by side."""
    b, c, h, w = x.shape
    return Pictures(b, h, w, c), torch.get_num_threads()


def once_differentiable(backward: Backward) -> Backward:
    """For gradients by hand: refuse to be differentiated again.

    torch's own returns a constant instead, where the incoming gradient is one, and a penalty would be lost.
    """

    @functools.wraps(backward)
    def once(*arguments: Any) -> Any:  # noqa: ANN401  as torch has it
        if torch.is_grad_enabled():  # as `create_graph` has it
            raise NotImplementedError("kernels of ours can be differentiated once only")
        return backward(*arguments)

    return once  # type: ignore[return-value]  # of the same signature


def load(source: Path) -> ctypes.CDLL:
    """The kernels of a C file for maps in bf16.

    Raises:
        NotHere: the processor has no AVX512-BF16, or there is no compiler that makes them.
    """
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        raise NotHere("this processor has no AVX512-BF16")
    return compile_c.load(source, *_FLAGS)
