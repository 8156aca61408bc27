"""Folders looked through for photos, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from shards.errors import UsageError
from shards.images.photos import looks_like_photo


def walk_photos(top: Path, option: str) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below `top`, the names of its folders and of its photo-like files, in order.

    What is taken out of the names of folders is left out. Links are followed, but no loop.

    Raises:
        UsageError: naming the option: what cannot be listed is no folder without photos.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(
        top, onerror=_refuse_unreadable(option), followlinks=True
    ):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield Path(folder), folders, sorted(filter(looks_like_photo, names))


def _refuse_unreadable(option: str) -> Callable[[OSError], NoReturn]:
    """For `os.walk`, which by itself passes over what it cannot list."""

    def refuse(error: OSError) -> NoReturn:
        raise UsageError(
            f"{option} {error.filename}: cannot be listed ({error.strerror});"
            " check its permissions, or move it away"
        )

    return refuse
