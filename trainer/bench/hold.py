"""Memory that is held in pieces, so that a virtual machine has none to give back to its host.

Many hosts take back what a virtual machine leaves free, in blocks of megabytes (Linux: free page reporting,
balloons), and it pays for every new page of a file: two seconds per GiB were seen. Where every second
piece of 256 KiB is held, what lies between stays the machine's own, as on one without a host.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Iterator

import numpy as np

from shards.errors import UsageError

PIECE = 2**18
"""Smaller than what is given back, larger than what a file's pages are taken in."""


@contextlib.contextmanager
def held(size: int) -> Iterator[None]:
    """Touch so many bytes, free every second piece of them, and keep the others inside the block.

    Raises:
        UsageError: so much is not free, or this system has no such pieces.
    """
    if not size:
        yield
        return
    if sys.platform != "linux":
        raise UsageError("--hold-memory: is for Linux; leave it out")
    free = _available()
    if size > 0.8 * free:
        raise UsageError(
            f"--hold-memory: only {free / 2**30:.1f} GiB are free, and the bench needs some; hold less"
        )
    try:
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise UsageError(f"--hold-memory: cannot be had ({error.strerror}); hold less") from None
    with mapped as pages:
        with contextlib.suppress(OSError):  # of a kernel that has none
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 1
        for start in range(0, len(pages), 2 * PIECE):
            pages.madvise(mmap.MADV_DONTNEED, start, PIECE)
        yield


def _available() -> int:
    with open("/proc/meminfo") as lines:  # noqa: PTH123
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024 * int(kib)
