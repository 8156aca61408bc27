"""Recursive listing of photo files in folders and stores; folders of LR images are skipped."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shards.images.photos import looks_like_photo
from shards.images.walk import walk_photos
from shards.io import remote
from shards.io.remote import Location

LR_FOLDER = re.compile(r"(?:^|[_-])LR(?:[_-]|$)", re.IGNORECASE)
"""Matches names of folders with LR images."""
_LR_SUFFIX = re.compile(r"X\d")
"""Matches names of folders with LR images beside a folder `HR`: LSDIR has `val1/HR` and `val1/X4`."""
_HIDDEN_NAME = re.compile(r"\.|lost\+found$")
"""Matches names of folders to skip."""


class PhotoFile(NamedTuple):
    """A file with the suffix of a photo."""

    path: Location
    name: str
    size: int
    mtime_ns: int


def list_photo_files(
    source: Location, skipped: list[str]
) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    """Yield photo files with the parts of their folder, in order; append folders of LR images to `skipped`."""
    return (
        _walk_store(source, skipped) if isinstance(source, str) else _walk_folder(source, skipped)
    )


def _walk_folder(source: Path, skipped: list[str]) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    for folder, folders, names in walk_photos(source, "--src"):
        lr_folders = [name for name in folders if _is_lr_folder(name, beside_hr="HR" in folders)]
        skipped += lr_folders
        folders[:] = [
            name for name in folders if name not in lr_folders and not _HIDDEN_NAME.match(name)
        ]
        parts = folder.relative_to(source).parts
        for name in names:
            path = folder / name
            yield parts, PhotoFile(path, name, *stamp_file(path))


def _walk_store(source: str, skipped: list[str]) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    lr_folders = set()
    files = remote.list_files(source)
    beside_hr = {f"/{path}".partition("/HR/")[0] for path in files if "/HR/" in f"/{path}"}
    for path, file in files.items():
        *parts, name = path.split("/")
        parents = itertools.accumulate((f"/{part}" for part in parts), initial="")
        lr_parts = [
            part
            for part, parent in zip(parts, parents, strict=False)
            if _is_lr_folder(part, beside_hr=parent in beside_hr)
        ]
        if lr_parts:
            lr_folders.add(lr_parts[0])
        elif looks_like_photo(name) and not any(part.startswith(".") for part in parts):
            url = f"{source.rstrip('/')}/{path}"
            yield tuple(parts), PhotoFile(url, name, file.size, file.modified_ns)
    skipped += sorted(lr_folders)


def _is_lr_folder(name: str, *, beside_hr: bool) -> bool:
    """Whether a folder contains LR images, by its name and its neighbours."""
    return bool(LR_FOLDER.search(name)) or (beside_hr and bool(_LR_SUFFIX.fullmatch(name)))


def stamp_file(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file; both 0 for a dangling link, which fails when it is read."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def sanitise_name(name: str) -> str:
    """Return a file name as text; bytes that are not UTF-8 become %XX."""
    raw = os.fsencode(name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape").translate(
            {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}
        )
