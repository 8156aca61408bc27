"""Pictures cut into the tiles of Winograd's algorithm and put together again, in C (`tiles_3x3.c` says how)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import BFloat16
from torch import Tensor

from trainer import native

Maps = BFloat16[Tensor, "b c h w"]
"""Channels last."""
Planes = BFloat16[Tensor, "places tiles_and_1 columns"]
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

    def room(self, x: Maps, columns: int) -> Planes:
        """Room for the tiles of pictures."""
        return torch.empty(self.places, self.tiles(x) + 1, columns, dtype=torch.bfloat16)


KEEPING = Tiling(kernel=3, stride=1, places=16, phases=1, whole=5)
"""3x3, stride 1: the sides stay as they are."""
HALVING = Tiling(kernel=4, stride=2, places=9, phases=4, whole=4)
"""4x4, stride 2."""


class _Planes(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_long))


@cache
def kernels(tiling: Tiling) -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NotHere: this machine cannot have them.
    """
    library = native.load(Path(__file__).with_name(tiling.name))
    pointer, slope, size = ctypes.c_void_p, ctypes.c_float, ctypes.c_long
    takes = {
        "tiles_in": [pointer, _Planes, *native.PICTURES],
        "tiles_out": [pointer, pointer, slope, pointer, *native.PICTURES],
        "grads_in": [pointer, pointer, slope, _Planes, *native.PICTURES],
        "grads_out": [pointer, pointer, *native.PICTURES],
        "kernels_in": [pointer, pointer, size, size, ctypes.c_int],
        "kernels_back": [pointer, pointer, size, size, ctypes.c_int],
    }
    if tiling is KEEPING:
        takes["grads_through"] = takes["grads_in"]
    for name, types in takes.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return library


def tiles_in(tiling: Tiling, x: Maps, to: Planes, column: int) -> None:
    """Cut `x`, into the columns from `column` on."""
    kernels(tiling).tiles_in(x.data_ptr(), _from(to, column), *native.pictures(x))


def tiles_out(
    tiling: Tiling, products: Planes, bias: Tensor | None, slope: float, out: Maps
) -> None:
    """Put `out` together, add the bias [c], and apply LeakyReLU."""
    base = None if bias is None else bias.float()
    at = None if base is None else base.data_ptr()
    kernels(tiling).tiles_out(products.data_ptr(), at, slope, out.data_ptr(), *native.pictures(out))


def grads_in(
    tiling: Tiling, gradient: Maps, seen: Maps, slope: float, to: Planes, column: int
) -> None:
    """Backward through the `tiles_out` that made `seen`."""
    kernels(tiling).grads_in(
        gradient.data_ptr(), seen.data_ptr(), slope, _from(to, column), *native.pictures(seen)
    )


def grads_out(tiling: Tiling, products: Planes, out: Maps) -> None:
    """Backward through `tiles_in`."""
    kernels(tiling).grads_out(products.data_ptr(), out.data_ptr(), *native.pictures(out))


def grads_through(products: Planes, seen: Maps, slope: float, to: Planes, column: int) -> None:
    """Backward through `tiles_in`, and on through the `tiles_out` that made `seen`; of 3x3 kernels."""
    kernels(KEEPING).grads_through(
        products.data_ptr(), seen.data_ptr(), slope, _from(to, column), *native.pictures(seen)
    )


def kernels_in(tiling: Tiling, weight: Tensor) -> Kernels:
    """A weight [outputs inputs kernel kernel] in the tiles' domain."""
    outputs, inputs = weight.shape[:2]
    out = torch.empty(tiling.places, outputs, tiling.phases * inputs, dtype=torch.bfloat16)
    flat = weight.detach().float().contiguous()
    threads = torch.get_num_threads()
    kernels(tiling).kernels_in(flat.data_ptr(), out.data_ptr(), outputs, inputs, threads)
    return out


def kernels_back(tiling: Tiling, gradient: Kernels, to: Tensor) -> None:
    """Backward through `kernels_in`, added to the gradient of a weight in float32."""
    threads = torch.get_num_threads()
    kernels(tiling).kernels_back(gradient.data_ptr(), to.data_ptr(), *to.shape[:2], threads)


def _from(planes: Planes, column: int) -> _Planes:
    """Planes as C knows them, from a column on."""
    return _Planes(planes.data_ptr() + planes.element_size() * column, planes.shape[2])
