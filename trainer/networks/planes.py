"""Pictures cut into the tiles of Winograd's algorithm and put together again, in C (`planes.c` says how)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from jaxtyping import BFloat16
from torch import Tensor

from trainer import native

Maps = BFloat16[Tensor, "b c h w"]
"""Channels last."""
Planes = BFloat16[Tensor, "16 tiles_and_1 columns"]
_TILES = 512
"""That are worked on at once, unless a picture has more: their planes should stay in the cache."""


def few_at_once(x: Maps) -> Iterator[slice]:
    """The pictures of a batch, as many at once as have few enough tiles."""
    images, _, height, width = x.shape
    step = max(1, _TILES * 4 // (height * width))
    return (slice(first, first + step) for first in range(0, images, step))


def room(x: Maps, columns: int) -> Planes:
    """Room for the tiles of pictures."""
    images, _, height, width = x.shape
    return torch.empty(16, images * height * width // 4 + 1, columns, dtype=torch.bfloat16)


class _Planes(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_long))


@cache
def kernels() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NotHere: this machine cannot have them.
    """
    library = native.load(Path(__file__).with_suffix(".c"))
    pointer, slope, ending = ctypes.c_void_p, ctypes.c_float, native.PICTURES
    library.tiles_in.argtypes = library.grads_in.argtypes = [pointer, _Planes, *ending]
    library.tiles_out.argtypes = [pointer, pointer, slope, pointer, *ending]
    library.grads_out.argtypes = [pointer, pointer, pointer, slope, _Planes, *ending]
    for each in (library.tiles_in, library.tiles_out, library.grads_in, library.grads_out):
        each.restype = None
    return library


def tiles_in(x: Maps, to: Planes, column: int) -> None:
    """Cut `x`, into the columns from `column` on."""
    kernels().tiles_in(x.data_ptr(), _from(to, column), *native.pictures(x))


def tiles_out(products: Planes, bias: Tensor | None, slope: float, out: Maps) -> None:
    """Put `out` together, add the bias [c], and apply LeakyReLU."""
    base = None if bias is None else bias.float()
    at = None if base is None else base.data_ptr()
    kernels().tiles_out(products.data_ptr(), at, slope, out.data_ptr(), *native.pictures(out))


def grads_in(gradient: Maps, to: Planes, column: int) -> None:
    """Backward through `tiles_out`, without its LeakyReLU."""
    kernels().grads_in(gradient.data_ptr(), _from(to, column), *native.pictures(gradient))


def grads_out(products: Planes, out: Maps) -> None:
    """Backward through `tiles_in`."""
    kernels().grads_out(
        products.data_ptr(), out.data_ptr(), None, 1.0, _Planes(), *native.pictures(out)
    )


def grads_out_and_in(products: Planes, seen: Maps, slope: float, to: Planes, column: int) -> None:
    """Backward through `tiles_in`, and on through the `tiles_out` that made `seen` by LeakyReLU."""
    kernels().grads_out(
        products.data_ptr(), None, seen.data_ptr(), slope, _from(to, column), *native.pictures(seen)
    )


def _from(planes: Planes, column: int) -> _Planes:
    """Planes as C knows them, from a column on."""
    return _Planes(planes.data_ptr() + planes.element_size() * column, planes.shape[2])
