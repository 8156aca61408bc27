"""Out of memory, told as what a person can do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shards.errors import UsrganError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""In what torch says of a GPU and of the CPU."""


@contextlib.contextmanager
def within_memory(what: str, *, fix: str) -> Iterator[None]:
    """Turn torch's complaint about memory into one line.

    Raises:
        UsrganError: the device's memory does not hold the work; names `what` and `fix`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise UsrganError(f"{what}: needs more memory than there is; {fix}") from error
