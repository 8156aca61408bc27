"""Winograd's algorithm in C for bf16 maps on a CPU: its two shapes, and the functions for 3x3 (`tiles_3x3.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import BFloat16
from torch import Tensor

from trainer import native

Maps = BFloat16[Tensor, "b c h w"]
"""Channels last, or some channels of such maps."""
Kernels = BFloat16[Tensor, "places outputs columns"]
_TILES = 512
"""That are worked on at once, unless a picture has more: their planes should stay in the cache."""


@dataclass(frozen=True)
class Tiling:
    """One shape of kernels."""

    kernel: int
    """Taps in each direction."""
    stride: int
    places: int
    """How many planes there are."""
    phases: int
    """Columns of a plane for each channel of the input."""
    whole: int
    """The plane whose gradients are sums over all pixels of a tile."""

    @property
    def name(self) -> str:
        """Of the C file."""
        return f"tiles_{self.kernel}x{self.kernel}.c"

    def tiles(self, x: Maps) -> int:
        """Two pixels of the output high and wide."""
        images, _, height, width = x.shape
        return images * height * width // (2 * self.stride) ** 2

    def few_at_once(self, x: Maps) -> Iterator[slice]:
        """The pictures of a batch, as many at once as have few enough tiles."""
        step = max(1, _TILES // self.tiles(x[:1]))
        return (slice(first, first + step) for first in range(0, len(x), step))


KEEPING = Tiling(kernel=3, stride=1, places=16, phases=1, whole=5)
"""3x3, stride 1: the sides stay as they are."""
HALVING = Tiling(kernel=4, stride=2, places=9, phases=4, whole=4)
"""4x4, stride 2."""


class Columns(ctypes.Structure):
    """Some columns of a matrix: where the first of the first row is, and how many a row has."""

    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_long))


class _Weights(ctypes.Structure):
    _fields_ = (
        ("at", ctypes.c_void_p),
        ("output", ctypes.c_long),
        ("input", ctypes.c_long),
        ("turned", ctypes.c_int),
    )


@cache
def library(tiling: Tiling) -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        NotHere: this machine cannot have them.
    """
    found = native.load(Path(__file__).with_name(tiling.name))
    pointer, slope, size, threads = ctypes.c_void_p, ctypes.c_float, ctypes.c_long, ctypes.c_int
    planes = pointer if tiling is KEEPING else Columns
    takes = {
        "tiles_in": [Columns, planes, *native.PICTURES],
        "grads_in": [Columns, planes, *native.PICTURES],
        "kernels_back": [pointer, pointer, size, size, threads],
    }
    if tiling is KEEPING:
        takes["kernels_of"] = [pointer, pointer, size, pointer, size, size, pointer, threads]
        maps = [Columns, pointer, pointer, Columns, slope, Columns, size]
        takes["convolve"] = [*maps, *native.PICTURES]
        takes["kernels_in"] = [_Weights, pointer, *[size] * 4, threads]
    else:
        takes["tiles_out"] = [pointer, pointer, slope, pointer, *native.PICTURES]
        takes["grads_out"] = [pointer, pointer, *native.PICTURES]
        takes["kernels_in"] = [pointer, pointer, size, size, threads]
    for name, types in takes.items():
        function = getattr(found, name)
        function.argtypes = types
        function.restype = ctypes.c_int if name == "convolve" else None
    return found


def empty(x: Maps, channels: int, stride: int = 1) -> Maps:
    """Maps for as many pictures as `x`."""
    b, _, h, w = x.shape
    shape = (b, channels, h // stride, w // stride)
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def last_inside(x: Maps) -> Maps:
    """The same with the channels of a pixel side by side."""
    return x.contiguous(memory_format=torch.channels_last)


def through(gradient: Maps, out: Maps, slope: float) -> Maps:
    """Backward through the LeakyReLU that made `out`."""
    gradient = last_inside(gradient)
    if slope == 1:
        return gradient
    back: Maps = torch.ops.aten.leaky_relu_backward(gradient, out, slope, True)
    return back


def kernels_of(maps: Maps, grads: Maps, reads: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gradients of the weight of a convolution of `maps`, [outputs inputs 3 3], and of its bias.

    Of each eight outputs only the inputs that they read are looked at; the others' gradients are zero.
    """
    outputs, inputs = grads.shape[1], maps.shape[1]
    c, threads = library(KEEPING), torch.get_num_threads()
    pairs = max(KEEPING.tiles(maps[some]) + 1 for some in KEEPING.few_at_once(maps)) // 2
    cut = torch.empty(KEEPING.places, pairs, inputs, 2, dtype=torch.bfloat16)
    spread = torch.empty(KEEPING.places, pairs, outputs, 2, dtype=torch.bfloat16)
    sums, bias = torch.zeros(KEEPING.places, outputs, inputs), torch.zeros(outputs)
    wanted = (ctypes.c_long * len(reads))(*reads)
    for some in KEEPING.few_at_once(maps):
        x, g = maps[some], grads[some]
        pairs = (KEEPING.tiles(x) + 1) // 2
        c.tiles_in(columns(x), cut.data_ptr(), *native.pictures(x))
        c.grads_in(columns(g), spread.data_ptr(), *native.pictures(g))
        given = spread.data_ptr(), cut.data_ptr(), pairs, sums.data_ptr()
        c.kernels_of(*given, outputs, inputs, wanted, threads)
        plane = pairs * outputs * 2
        whole = spread.view(-1)[KEEPING.whole * plane :][:plane].view(pairs, -1)
        whole = whole.sum(0, dtype=torch.float32)
        bias += whole.view(outputs, 2).sum(1)
    weight = torch.zeros(outputs, inputs, 3, 3)
    c.kernels_back(sums.data_ptr(), weight.data_ptr(), outputs, inputs, threads)
    return weight, bias


def room_for_kernels(inputs: int, outputs: int) -> Tensor:
    """Room for what `kernels_in` makes, in the order in which `convolve` reads it."""
    return torch.empty(KEEPING.places * inputs * outputs, dtype=torch.bfloat16)


def kernels_in(weight: Tensor, to: Tensor, *, first: int = 0, back: bool = False) -> None:
    """A weight [outputs inputs 3 3] as the inputs from `first` on of kernels.

    `back`: for the gradient of the input, with taps turned and outputs for inputs.
    """
    flat = weight.detach().float()
    if flat.stride()[2:] != (3, 1):
        flat = flat.contiguous()
    outputs, inputs = flat.shape[1::-1] if back else flat.shape[:2]
    by_output, by_input = flat.stride()[1::-1] if back else flat.stride()[:2]
    every = to.numel() // (KEEPING.places * outputs)
    library(KEEPING).kernels_in(
        _Weights(flat.data_ptr(), by_output, by_input, back),
        to.data_ptr(),
        outputs,
        inputs,
        first,
        every,
        torch.get_num_threads(),
    )


def convolve(
    x: Maps,
    kernels: Tensor,
    to: Maps,
    *,
    bias: Tensor | None = None,
    seen: Maps | None = None,
    slope: float = 1.0,
) -> None:
    """The convolution plus a bias [c], through a LeakyReLU: by its own sign, or backward by that of `seen`.

    Raises:
        MemoryError: there is none for some tiles.
    """
    base = None if bias is None else bias.float().contiguous()
    failed = library(KEEPING).convolve(
        columns(x),
        kernels.data_ptr(),
        None if base is None else base.data_ptr(),
        Columns() if seen is None else columns(seen),
        slope,
        columns(to),
        to.shape[1],
        *native.pictures(x),
    )
    if failed:
        raise MemoryError("no memory for the tiles of a convolution")


def columns(x: Maps) -> Columns:
    """The channels of maps, as C knows them."""
    assert x.stride(1) == 1
    return Columns(x.data_ptr(), x.stride(3))
