"""Which photos there are: published layouts are known by their folder names, LR folders left out.

DIV2K brings its own split (https://data.vision.ee.ethz.ch/cvl/DIV2K/): `DIV2K_train_HR` trains,
`DIV2K_valid_HR` validates. LSDIR has `shard-NN/`, `val1/HR/` and LR in `val1/X4/`; Flickr2K and DF2K only train.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.photos.walk import LR_FOLDER, list_photo_files, sanitise_name, stamp_file
from shards.errors import UsageError
from shards.io.remote import Location

_LAYOUTS = {
    "DF2K": re.compile(r"^DF2K(?:_|$)"),
    "DIV2K": re.compile(r"^DIV2K_(?:train|valid)_HR$"),
    "Flickr2K": re.compile(r"^Flickr2K(?:_HR)?$"),
    "LSDIR": re.compile(r"^(?:LSDIR|shard-\d\d)$"),
}
_VAL = re.compile(r"^(?:DIV2K_valid_HR|val1)$")


class FoundPhoto(NamedTuple):
    """A file that looks like a photo."""

    path: Location
    name: str
    """Path below its source folder, with `/`; bytes that are not UTF-8 as %XX."""
    size: int
    mtime_ns: int
    val: bool
    """Its folder says that it validates."""
    lr: Path | None = None
    """Its official LR image."""
    lr_stamp: tuple[int, int] = (0, 0)
    """Size and time of change of that."""


class Scan(NamedTuple):
    """Photos below the source folders, sorted by name."""

    layout: str
    """`DIV2K`, `DF2K` …, joined by + where several are seen, or `folder`."""
    photos: tuple[FoundPhoto, ...]
    skipped: tuple[str, ...]
    """Folders of LR images, left out."""


def scan_sources(sources: Sequence[Location]) -> Scan:
    """Look for photos below the source folders or URLs.

    Raises:
        UsageError: a source is missing or no folder, a folder cannot be read, two photos come to one name,
            or there are no photos at all.
    """
    layouts: set[str] = set()
    photos: list[FoundPhoto] = []
    skipped: list[str] = []
    unique = sorted({_photo_identity(source): source for source in sources}.values(), key=str)
    for source, prefix in zip(unique, _source_prefixes(unique), strict=True):
        _check_source(source)
        for parts, file in list_photo_files(source, skipped):
            here = [_split_path(source)[-1], *parts]
            layouts.update(_known_layouts(here))
            name = sanitise_name("/".join((*prefix, *parts, file.name)))
            photos.append(
                FoundPhoto(file.path, name, file.size, file.mtime_ns, _is_validation(here))
            )
    if not photos:
        raise UsageError(_explain_no_photos(sources, skipped))
    photos.sort(key=_sort_by_name)
    _check_names(photos)
    if all(
        photo.val for photo in photos
    ):  # only the val folder was given: it is a folder of photos
        photos = [photo._replace(val=False) for photo in photos]
    return Scan("+".join(sorted(layouts)) or "folder", tuple(photos), tuple(skipped))


def find_changed(before: Scan, now: Scan) -> str:
    """The path of a photo or LR image that is not any more what an earlier scan saw, or nothing."""
    seen = {photo.name: (photo.size, photo.mtime_ns) for photo in now.photos}
    for photo in before.photos:
        if seen.get(photo.name) != (photo.size, photo.mtime_ns):
            return str(photo.path)
        if photo.lr and stamp_file(photo.lr) != photo.lr_stamp:
            return str(photo.lr)
    return ""


def describe_layout(result: Scan, val_names: Collection[str]) -> str:
    """One line for the person: which layout, how many photos, what was left out."""
    val = len(val_names)
    known = f"{result.layout} layout" if result.layout != "folder" else "no known layout"
    split = f" ({len(result.photos) - val:,} to train, {val:,} to validate)" if val else ""
    skipped = f"; LR folders left out: {', '.join(result.skipped[:4])}" if result.skipped else ""
    more = f" and {len(result.skipped) - 4} more" if len(result.skipped) > 4 else ""
    return f"{known}: {len(result.photos):,} photos{split}{skipped}{more}"


def listing_sha256(result: Scan) -> str:
    """Return a digest of names and sizes: it shows whether a finished data set was made of these photos."""
    digest = hashlib.sha256()
    for photo in result.photos:
        digest.update(f"{photo.name}\0{photo.size}\0{photo.val}\n".encode())
    return digest.hexdigest()


def match_names(result: Scan, names: Sequence[str]) -> set[str]:
    """The photos that a list names by path, file name or stem, or by a pattern such as `kodim*`.

    Raises:
        UsageError: a line of the list names no photo.
    """
    index: dict[str, set[str]] = {}
    for photo in result.photos:
        file = photo.name.rpartition("/")[2]
        for alias in {photo.name, file, file.rpartition(".")[0]}:
            index.setdefault(alias, set()).add(photo.name)
    chosen: set[str] = set()
    for name in names:
        like = [name] if name in index else fnmatch.filter(index, name)  # `photo[1].jpg` is a name
        if not like:
            raise UsageError(
                f"--val-list: {name!r} is none of the {len(result.photos)} photos; give file names, one a line"
            )
        chosen.update(*(index[alias] for alias in like))
    return chosen


def _check_names(photos: Sequence[FoundPhoto]) -> None:
    """Every photo, in the order of their names, has one of its own."""
    for one, other in itertools.pairwise(photos):
        if one.name == other.name:
            raise UsageError(
                f"--src: {one.path} and {other.path} would both be called {one.name}; rename one"
            )


def _photo_identity(source: Location) -> Location:
    return source.rstrip("/") if isinstance(source, str) else source.resolve()


def _split_path(source: Location) -> tuple[str, ...]:
    if isinstance(source, Path):
        return source.resolve().parts[1:] or ("/",)
    store, _, path = source.partition("://")
    return f"{store}:/", *path.rstrip("/").split("/")  # no part of a local path has a slash


def _check_source(source: Location) -> None:
    if isinstance(source, Path) and not source.exists():
        raise UsageError(f"--src {source}: there is no such folder")
    if isinstance(source, Path) and not source.is_dir():
        raise UsageError(f"--src {source}: is a file; name the folder that holds the photos")
    if LR_FOLDER.search(_split_path(source)[-1]):
        raise UsageError(
            f"--src {source}: holds LR images by its name; name the folder of HR photos"
        )


def _source_prefixes(sources: Sequence[Location]) -> list[tuple[str, ...]]:
    """Return a prefix for each source: as many trailing path parts as make all prefixes distinct."""
    if len(sources) == 1:
        return [()]
    parts = [_split_path(source) for source in sources]
    depth = 1
    while max(Counter(part[-depth:] for part in parts).values()) > 1:
        depth += 1
    return [part[-depth:] for part in parts]


def _is_validation(here: Sequence[str]) -> bool:
    return any(_VAL.match(part) for part in here)


def _known_layouts(here: Sequence[str]) -> set[str]:
    """The published layouts that a path shows; DF2K is made of two others."""
    seen = {name for name, form in _LAYOUTS.items() if any(form.match(part) for part in here)}
    return {"DF2K"} if "DF2K" in seen else seen


def _sort_by_name(photo: FoundPhoto) -> str:
    return photo.name


def _explain_no_photos(sources: Sequence[Location], skipped: Sequence[str]) -> str:
    where = ", ".join(map(str, sources))
    if skipped:
        return f"--src {where}: holds only LR folders ({', '.join(skipped[:3])}); name the folder of HR photos"
    return f"--src {where}: no photos there (PNG, JPEG, WebP, TIFF, BMP); check the folder"
