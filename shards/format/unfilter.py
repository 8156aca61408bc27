"""Inverse PNG filters: all of them in C; without a compiler only Up, the filter of our patches, in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.io import compile_c

UP = 2
"""Filter type 2: each row is stored as the difference from the row above."""
_pointer, _long = ctypes.c_void_p, ctypes.c_long


def unfilter(filtered: Sequence[bytes], out: npt.NDArray[np.uint8]) -> bool:
    """Undo the row filters of images, each `[h 1+3w]` bytes, into `out` [n h w 3], C-contiguous.

    Returns False, with arbitrary content in `out`, for a row with an invalid filter type or, without a
    C compiler, any filter type but Up.
    """
    assert out.flags.c_contiguous
    count, height, width, _ = out.shape
    assert [len(image) for image in filtered] == [height * (1 + 3 * width)] * count
    library, _ = _load_kernel()
    if library is None:
        rows = np.frombuffer(b"".join(filtered), np.uint8).reshape(count, height, 1 + 3 * width)
        if not (rows[:, :, 0] == UP).all():
            return False
        _add_rows_above(rows[:, :, 1:], out.reshape(count, height, 3 * width))
        return True
    images = (ctypes.c_char_p * count)(*filtered)
    done = library.unfilter(images, _zero_row(3 * width), out.ctypes.data, count, height, width)
    return bool(done == count * height)


def missing_kernel_reason() -> str:
    """Return why the C kernel is missing; an empty string if it is loaded."""
    return _load_kernel()[1]


@cache
def _load_kernel() -> tuple[ctypes.CDLL | None, str]:
    """Return the compiled `unfilter.c` and an empty string, or None and the reason."""
    try:
        library = compile_c.load(Path(__file__).with_suffix(".c"))
        library.unfilter  # noqa: B018  # a C++ compiler mangles the name
    except compile_c.KernelUnavailable as reason:
        return None, str(reason)
    except AttributeError:
        return None, "$CC does not name a C compiler"
    library.unfilter.argtypes = [_pointer, ctypes.c_char_p, _pointer, _long, _long, _long]
    library.unfilter.restype = _long
    return library, ""


@lru_cache(maxsize=4)
def _zero_row(length: int) -> bytes:
    """Return the row of zeros that precedes the first one."""
    return bytes(length)


def _add_rows_above(rows: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Write the running sums of rows [n h w], modulo 256, to `out`; each pass doubles the rows per sum.

    Hillis and Steele, "Data parallel algorithms", CACM 29 (1986). `np.add.accumulate` adds row by row and
    takes four times as long. A zero margin above the rows makes each pass a single addition.
    """
    count, height, width = out.shape
    steps = [1 << n for n in range((height - 1).bit_length())]
    if len(steps) < 2:
        np.add.accumulate(rows, axis=1, dtype=np.uint8, out=out)
        return
    margin = steps[-1]
    scratch = np.empty((2, count, margin + height, width), np.uint8)
    scratch[:, :, :margin] = 0
    source, target = scratch
    source[:, margin] = rows[:, 0]
    np.add(rows[:, 1:], rows[:, :-1], out=source[:, margin + 1 :])
    for step in steps[1:-1]:
        np.add(source[:, margin:], source[:, margin - step : -step], out=target[:, margin:])
        source, target = target, source
    np.add(source[:, margin:], source[:, margin - steps[-1] : -steps[-1]], out=out)
