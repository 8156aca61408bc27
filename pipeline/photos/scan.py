"""Search for photos: folder names identify published layouts; folders of LR images are skipped.

DIV2K has its own split (https://data.vision.ee.ethz.ch/cvl/DIV2K/): `DIV2K_train_HR` for training and
`DIV2K_valid_HR` for validation. LSDIR has `shard-NN/`, `val1/HR/` and LR images in `val1/X4/`. Flickr2K and
DF2K have training photos only.
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
from shards.messages import format_count

_LAYOUTS = {
    "DF2K": re.compile(r"^DF2K(?:_|$)"),
    "DIV2K": re.compile(r"^DIV2K_(?:train|valid)_HR$"),
    "Flickr2K": re.compile(r"^Flickr2K(?:_HR)?$"),
    "LSDIR": re.compile(r"^(?:LSDIR|shard-\d\d)$"),
}
_VAL = re.compile(r"^(?:DIV2K_valid_HR|val1)$")


class FoundPhoto(NamedTuple):
    """A file with the suffix of a photo."""

    path: Location
    name: str
    """Path relative to the source folder, with `/`; bytes that are not UTF-8 are %XX."""
    size: int
    mtime_ns: int
    val: bool
    """Whether its folder is a published validation folder."""
    lr: Path | None = None
    """Official LR image."""
    lr_stamp: tuple[int, int] = (0, 0)
    """Size and modification time of the official LR image."""


class Scan(NamedTuple):
    """Photos of all sources, sorted by name."""

    layout: str
    """`DIV2K`, `DF2K` …, several joined by +, or `folder`."""
    photos: tuple[FoundPhoto, ...]
    skipped: tuple[str, ...]
    """Names of skipped folders of LR images."""


def scan_sources(sources: Sequence[Location]) -> Scan:
    """List the photos below source folders or URLs.

    Raises:
        UsageError: a source is missing or not a folder, a folder cannot be read, two photos have the same
            name, or no photo exists.
    """
    layouts: set[str] = set()
    photos: list[FoundPhoto] = []
    skipped: list[str] = []
    unique = sorted({_photo_identity(source): source for source in sources}.values(), key=str)
    for source, prefix in zip(unique, _source_prefixes(unique), strict=True):
        _check_source(source)
        for parts, file in list_photo_files(source, skipped):
            path = [_split_path(source)[-1], *parts]
            layouts.update(_known_layouts(path))
            name = sanitise_name("/".join((*prefix, *parts, file.name)))
            photos.append(
                FoundPhoto(file.path, name, file.size, file.mtime_ns, _is_validation(path))
            )
    if not photos:
        raise UsageError(_explain_no_photos(sources, skipped))
    photos.sort(key=_sort_by_name)
    _check_names(photos)
    if all(photo.val for photo in photos):  # a lone validation folder is a plain folder of photos
        photos = [photo._replace(val=False) for photo in photos]
    return Scan("+".join(sorted(layouts)) or "folder", tuple(photos), tuple(skipped))


def find_changed(before: Scan, now: Scan) -> str:
    """Return the path of a photo or LR image that changed since an earlier scan; empty for none."""
    stamps = {photo.name: (photo.size, photo.mtime_ns) for photo in now.photos}
    for photo in before.photos:
        if stamps.get(photo.name) != (photo.size, photo.mtime_ns):
            return str(photo.path)
        if photo.lr and stamp_file(photo.lr) != photo.lr_stamp:
            return str(photo.lr)
    return ""


def describe_layout(scan: Scan, val_names: Collection[str]) -> str:
    """Return one line for the user: number of photos, layout, split, skipped folders."""
    val = len(val_names)
    layout = f"{scan.layout} layout"
    if scan.layout == "folder":
        layout = "plain folder; not DIV2K, Flickr2K, DF2K or LSDIR"
    split = f"; {len(scan.photos) - val:,} for training, {val:,} for validation" if val else ""
    more = f" and {len(scan.skipped) - 4} more" if len(scan.skipped) > 4 else ""
    skipped = f"; skipped LR folders: {', '.join(scan.skipped[:4])}{more}" if scan.skipped else ""
    return f"found {format_count(len(scan.photos), 'photo')} ({layout}{split}){skipped}"


def listing_sha256(scan: Scan) -> str:
    """Return a digest of names, sizes and split of the photos, which identifies them in a finished data set."""
    digest = hashlib.sha256()
    for photo in scan.photos:
        digest.update(f"{photo.name}\0{photo.size}\0{photo.val}\n".encode())
    return digest.hexdigest()


def match_names(scan: Scan, names: Sequence[str]) -> set[str]:
    """Return the photos that a list names by path, file name, stem, or a pattern such as `kodim*`.

    Raises:
        UsageError: a line of the list matches no photo.
    """
    index: dict[str, set[str]] = {}
    for photo in scan.photos:
        file = photo.name.rpartition("/")[2]
        for alias in {photo.name, file, file.rpartition(".")[0]}:
            index.setdefault(alias, set()).add(photo.name)
    chosen: set[str] = set()
    for name in names:
        # an exact name comes before a pattern, because of names such as `photo[1].jpg`
        aliases = [name] if name in index else fnmatch.filter(index, name)
        if not aliases:
            raise UsageError(
                f"--val-list: {name!r} matches none of {format_count(len(scan.photos), 'photo')};"
                " write one file name per line"
            )
        chosen.update(*(index[alias] for alias in aliases))
    return chosen


def _check_names(photos: Sequence[FoundPhoto]) -> None:
    """Check that no two photos, sorted by name, have the same name."""
    for one, other in itertools.pairwise(photos):
        if one.name == other.name:
            raise UsageError(
                f"--src: {one.path} and {other.path} would have the same name {one.name}; rename one"
            )


def _photo_identity(source: Location) -> Location:
    return source.rstrip("/") if isinstance(source, str) else source.resolve()


def _split_path(source: Location) -> tuple[str, ...]:
    if isinstance(source, Path):
        return source.resolve().parts[1:] or ("/",)
    store, _, path = source.partition("://")
    return f"{store}:/", *path.rstrip("/").split("/")  # the slash keeps it apart from local names


def _check_source(source: Location) -> None:
    if isinstance(source, Path) and not source.exists():
        raise UsageError(f"--src {source}: does not exist; check the path")
    if isinstance(source, Path) and not source.is_dir():
        raise UsageError(f"--src {source}: is a file; name the folder of the photos")
    if LR_FOLDER.search(_split_path(source)[-1]):
        raise UsageError(
            f"--src {source}: is a folder of LR images by its name; name the folder of HR photos"
        )


def _source_prefixes(sources: Sequence[Location]) -> list[tuple[str, ...]]:
    """Return a prefix of photo names per source: as many trailing path parts as make all prefixes differ."""
    if len(sources) == 1:
        return [()]
    parts = [_split_path(source) for source in sources]
    depth = 1
    while max(Counter(part[-depth:] for part in parts).values()) > 1:
        depth += 1
    return [part[-depth:] for part in parts]


def _is_validation(path: Sequence[str]) -> bool:
    return any(_VAL.match(part) for part in path)


def _known_layouts(path: Sequence[str]) -> set[str]:
    """Return the published layouts that match a path; DF2K includes two others and hides them."""
    layouts = {
        name for name, pattern in _LAYOUTS.items() if any(pattern.match(part) for part in path)
    }
    return {"DF2K"} if "DF2K" in layouts else layouts


def _sort_by_name(photo: FoundPhoto) -> str:
    return photo.name


def _explain_no_photos(sources: Sequence[Location], skipped: Sequence[str]) -> str:
    names = ", ".join(map(str, sources))
    if skipped:
        return f"--src {names}: has only LR folders ({', '.join(skipped[:3])}); name the folder of HR photos"
    return f"--src {names}: has no photos (PNG, JPEG, WebP, TIFF, BMP); check the folder"
