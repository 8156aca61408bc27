"""Recursive listing of photo files in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from shards.errors import UsageError
from shards.images.photos import looks_like_photo


def walk_photos(top: Path, option: str) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder below `top`, the names of its sub-folders and those of its photo files, in order.

    The caller may remove sub-folder names to skip them. Follows links, each folder once.

    Raises:
        UsageError: a folder cannot be listed; names the option.
    """
    visited: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(
        top, onerror=_refuse_unreadable(option), followlinks=True
    ):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        yield Path(folder), folders, sorted(filter(looks_like_photo, names))


def _refuse_unreadable(option: str) -> Callable[[OSError], NoReturn]:
    """Return the `onerror` of `os.walk`, which would otherwise skip unreadable folders silently."""

    def refuse(error: OSError) -> NoReturn:
        raise UsageError(
            f"{option} {error.filename}: cannot be listed ({error.strerror});"
            " check its permissions, or move it elsewhere"
        )

    return refuse
