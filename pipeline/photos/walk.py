"""Folders and stores walked in order for what looks like photos; folders of LR images are left out."""

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
"""Is found in the names of folders of LR images."""
_LR_SUFFIX = re.compile(r"X\d")
"""Such folders hold LR images where a folder `HR` lies beside them: LSDIR has `val1/HR` and `val1/X4`."""
_HIDDEN_NAME = re.compile(r"\.|lost\+found$")


class PhotoFile(NamedTuple):
    """A file whose name looks like a photo's."""

    path: Location
    name: str
    size: int
    mtime_ns: int


def list_photo_files(
    source: Location, skipped: list[str]
) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    """Photo-like files, each with the parts of its folder, in order; folders of LR are `skipped`."""
    return (
        _walk_store(source, skipped) if isinstance(source, str) else _walk_folder(source, skipped)
    )


def _walk_folder(source: Path, skipped: list[str]) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    for folder, folders, names in walk_photos(source, "--src"):
        low = [name for name in folders if _is_lr_folder(name, beside_hr="HR" in folders)]
        skipped += low
        folders[:] = [name for name in folders if name not in low and not _HIDDEN_NAME.match(name)]
        parts = folder.relative_to(source).parts
        for name in names:
            path = folder / name
            yield parts, PhotoFile(path, name, *stamp_file(path))


def _walk_store(source: str, skipped: list[str]) -> Iterator[tuple[tuple[str, ...], PhotoFile]]:
    left_out = set()
    listed = remote.list_files(source)
    beside_hr = {f"/{below}".partition("/HR/")[0] for below in listed if "/HR/" in f"/{below}"}
    for below, found in listed.items():
        *parts, name = below.split("/")
        above = itertools.accumulate((f"/{part}" for part in parts), initial="")
        low = [
            part
            for part, folder in zip(parts, above, strict=False)
            if _is_lr_folder(part, beside_hr=folder in beside_hr)
        ]
        if low:
            left_out.add(low[0])
        elif looks_like_photo(name) and not any(part.startswith(".") for part in parts):
            path = f"{source.rstrip('/')}/{below}"
            yield tuple(parts), PhotoFile(path, name, found.size, found.modified_ns)
    skipped += sorted(left_out)


def _is_lr_folder(name: str, *, beside_hr: bool) -> bool:
    """Return whether a folder holds LR images, by its name and its neighbours."""
    return bool(LR_FOLDER.search(name)) or (beside_hr and bool(_LR_SUFFIX.fullmatch(name)))


def stamp_file(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file, which show whether it has changed."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: reading it will say so
        return 0, 0
    return status.st_size, status.st_mtime_ns


def sanitise_name(name: str) -> str:
    """A file name in UTF-8: bytes that are not stand as %XX."""
    raw = os.fsencode(name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape").translate(
            {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}
        )
