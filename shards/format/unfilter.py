"""PNG's filters undone: in C where that can be compiled, else by NumPy for the filter that our patches have."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.io import compile_c

UP = 2
"""The filter whose rows are differences from the row above."""
_pointer, _long = ctypes.c_void_p, ctypes.c_long


def unfilter(filtered: Sequence[bytes], out: npt.NDArray[np.uint8]) -> bool:
    """Undo the filters of images' rows, each `[h 1+3w]` bytes, into `out` [n h w 3], C-contiguous.

    Returns:
        whether that could be done; if not, `out` holds anything. A row may have a filter that is none
        of PNG's, or, without a C compiler, another one than Up.
    """
    assert out.flags.c_contiguous
    count, height, width, _ = out.shape
    assert [len(each) for each in filtered] == [height * (1 + 3 * width)] * count
    library, _ = _load_kernel()
    if library is None:
        rows = np.frombuffer(b"".join(filtered), np.uint8).reshape(count, height, 1 + 3 * width)
        if not (rows[:, :, 0] == UP).all():
            return False
        _add_rows_above(rows[:, :, 1:], out.reshape(count, height, 3 * width))
        return True
    images = (ctypes.c_char_p * count)(*filtered)
    done = library.unfilter(images, _keep_rows(3 * width), out.ctypes.data, count, height, width)
    return bool(done == count * height)


def missing_kernel_reason() -> str:
    """Why only filter Up can be undone here; nothing where all can."""
    return _load_kernel()[1]


@cache
def _load_kernel() -> tuple[ctypes.CDLL | None, str]:
    """The function of `unfilter.c`, or why it cannot be had."""
    try:
        library = compile_c.load(Path(__file__).with_suffix(".c"))
        library.unfilter  # noqa: B018  # a compiler of C++ gives it another name
    except compile_c.KernelUnavailable as reason:
        return None, str(reason)
    except AttributeError:
        return None, "what $CC names is no C compiler"
    library.unfilter.argtypes = [_pointer, ctypes.c_char_p, _pointer, _long, _long, _long]
    library.unfilter.restype = _long
    return library, ""


@lru_cache(maxsize=4)
def _keep_rows(length: int) -> bytes:
    """Return the row above the first one: zeros."""
    return bytes(length)


def _add_rows_above(rows: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Sums of rows [n h w] from the first on, modulo 256: each addition doubles how many are in each sum.

    Hillis and Steele, "Data parallel algorithms", CACM 29 (1986). `np.add.accumulate` adds row by row and
    takes four times as long; here a zeroed margin above the rows lets each round be one addition.
    """
    count, height, width = out.shape
    steps = [1 << n for n in range((height - 1).bit_length())]
    if len(steps) < 2:
        np.add.accumulate(rows, axis=1, dtype=np.uint8, out=out)
        return
    margin = steps[-1]
    scratch = np.empty((2, count, margin + height, width), np.uint8)
    scratch[:, :, :margin] = 0
    here, there = scratch
    here[:, margin] = rows[:, 0]
    np.add(rows[:, 1:], rows[:, :-1], out=here[:, margin + 1 :])
    for step in steps[1:-1]:
        np.add(here[:, margin:], here[:, margin - step : -step], out=there[:, margin:])
        here, there = there, here
    np.add(here[:, margin:], here[:, margin - steps[-1] : -steps[-1]], out=out)
