"""Test sets: folders of HR pictures with their LR, or the held-out patches of a data set.

A set is checked whole before anything is computed: every picture is decoded once, so what cannot
be scored is told at once and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.errors import UsageError
from shards.format.png import RGB8
from shards.images import resize
from shards.images.photos import Photo, RejectedPhoto, looks_like_photo, read_photo
from shards.read.dataset import open_dataset

MADE_HERE = "antialiased bicubic of HR"
_SAID = {"grey expanded to RGB", "16 bit reduced to 8", "alpha dropped"}
"""Of `Photo.notes`: told in other words, or of no consequence."""
KINDS = "PNG, JPEG, WebP, TIFF, BMP"


class ImagePair(NamedTuple):
    """One test picture: the truth [h w 3] and its LR [h/scale w/scale 3]."""

    name: str
    hr: RGB8
    lr: RGB8


class ImageSet(NamedTuple):
    """A test set: its name, how many pictures it has, and a way to read them one by one."""

    name: str
    images: int
    lr_from: str
    """The folder of its LR pictures, or how they are made."""
    notes: tuple[str, ...]
    """What was converted, for whoever reads its numbers."""
    pictures: Callable[[], Iterator[ImagePair]]


def open_folder_set(hr: Path, lr: Path | None, *, scale: int, smallest: int) -> ImageSet:
    """A folder of HR pictures, with a folder of LR pictures or LR made here.

    `hr` may be the folder of a set in the field's layout, with the pictures in `HR` below it; then
    LR comes from `LRx4` (or of what scale it is) beside that, where it is there.

    Args:
        hr: folder of the truth.
        lr: folder of LR pictures of the same names; None: as said above.
        scale: HR side over LR side.
        smallest: pixels a side that a picture needs to be scored.

    Raises:
        UsageError: a folder or a picture cannot be used; names it and the fix.
    """
    below, official = hr / "HR", hr / f"LRx{scale}"
    if below.is_dir() and not _pictures_in(hr):
        lr = lr or (official if official.is_dir() else None)
        hr = below
    truths = _list_pictures(hr, option="--hr")
    lows = _pair_pictures(truths, lr, scale=scale) if lr else dict.fromkeys(truths)
    grey, deep = [], []
    others: dict[str, list[str]] = {}
    for path in truths:
        photo = _check_pair(path, lows[path], scale=scale, smallest=smallest)
        if photo.grey:
            grey.append(path.stem)
        if photo.bit_depth != 8:
            deep.append(path.stem)
        for note in (each for each in photo.notes if each not in _SAID):
            others.setdefault(note, []).append(path.stem)

    def pictures() -> Iterator[ImagePair]:
        for path in truths:
            yield _read_pair(path, lows[path], scale=scale)

    resolved = hr.resolve()
    return ImageSet(
        name=resolved.parent.name if resolved.name.lower() == "hr" else resolved.name,
        images=len(truths),
        lr_from=_short_path(lr) if lr else MADE_HERE,
        notes=(
            *_note_names(grey, "grey, scored as RGB of three equal channels"),
            *_note_names(deep, "16 bit, reduced to 8"),
            *(line for what, stems in others.items() for line in _note_names(stems, what)),
        ),
        pictures=pictures,
    )


def open_shards_set(folder: Path, *, scale: int, smallest: int) -> ImageSet:
    """The held-out patches of a data set.

    Raises:
        UsageError: it has none, is of another scale, or its patches are too small.
    """
    dataset = open_dataset(folder)
    if dataset.manifest.scale != scale:
        raise UsageError(
            f"--shards {folder}: is of scale {dataset.manifest.scale}, not {scale};"
            f" give models of that scale, or --scale {dataset.manifest.scale} where there are none"
        )
    split = dataset.split("val")
    if not len(split):
        raise UsageError(f"--shards {folder}: has no held-out patches; use --hr FOLDER")
    side = dataset.manifest.hr_size
    if side < smallest:
        raise UsageError(
            f"--shards {folder}: its patches of {side}x{side} are too small to score:"
            f" {smallest} pixels a side are needed; use --hr FOLDER"
        )

    def pictures() -> Iterator[ImagePair]:
        for position in range(len(split)):
            pair = split[position]
            yield ImagePair(f"{pair.key:012d}", pair.hr, pair.lr)

    return ImageSet(folder.resolve().name, len(split), "the data set's", (), pictures)


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if looks_like_photo(path.name))


def _list_pictures(folder: Path, *, option: str) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: there is no such folder of pictures")
    paths = _pictures_in(folder)
    if not paths:
        raise UsageError(f"{option} {folder}: holds no pictures ({KINDS}); name another folder")
    _check_stems(paths, option=f"{option} {folder}")
    return paths


def _check_stems(paths: Sequence[Path], *, option: str) -> None:
    """Pairs and strips go by stem, so two files of one stem would be taken for each other."""
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is not path:
            raise UsageError(f"{option}: {other.name} and {path.name} have one name; remove one")


def _pair_pictures(truths: Sequence[Path], lr: Path, *, scale: int) -> dict[Path, Path | None]:
    """The LR file of each HR file: the same stem, with or without `x4` behind it."""
    lows = {path.stem: path for path in _list_pictures(lr, option="--lr")}
    partners: dict[Path, Path | None] = {}
    for path in truths:
        names = (path.stem, f"{path.stem}x{scale}", f"{path.stem}_x{scale}")
        partner = next((lows[name] for name in names if name in lows), None)
        if partner is None:
            raise UsageError(
                f"--lr {lr}: has no picture for {path.name}; give LR of the same names"
            )
        partners[path] = partner
    return partners


def _check_pair(path: Path, low: Path | None, *, scale: int, smallest: int) -> Photo:
    """The photo at `path`, whole and of a size and kind that can be scored; so is its LR."""
    photo = _read_photo(path)
    hr = resize.crop_to_multiple(photo.pixels, scale=scale)
    if min(hr.shape[:2]) < smallest:
        raise UsageError(
            f"{path}: {_describe_size(photo.pixels)} is too small to score at x{scale}:"
            f" {-(-smallest // scale) * scale} pixels a side are needed; remove it"
        )
    if low is None:
        return photo
    small = _read_photo(low)
    wanted = (hr.shape[0] // scale, hr.shape[1] // scale)
    if small.pixels.shape[:2] != wanted:
        raise UsageError(
            f"{low}: is {_describe_size(small.pixels)}, but {path.name} at x{scale} needs"
            f" {wanted[1]}x{wanted[0]}; give LR of this scale"
        )
    if small.grey and not photo.grey:
        raise UsageError(f"{low}: is grey, but {path.name} is in colour; give LR in colour")
    return photo


def _read_pair(path: Path, low: Path | None, *, scale: int) -> ImagePair:
    hr = np.ascontiguousarray(resize.crop_to_multiple(_read_photo(path).pixels, scale=scale))
    lr = resize.downscale(hr, scale=scale) if low is None else _read_photo(low).pixels
    return ImagePair(path.stem, hr, lr)


def _read_photo(path: Path) -> Photo:
    try:
        return read_photo(path)
    except RejectedPhoto as refused:
        reason = refused.reason
        if refused.code == "ALPHA":
            reason = "has transparent pixels, whose colours nobody sees; flatten it"
        raise UsageError(f"{path}: {reason}; replace or remove it") from None


def _note_names(names: Sequence[str], what: str) -> Iterator[str]:
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{what}: {listed}"


def _short_path(folder: Path) -> str:
    """The last two names of a path: `Set5/LRx4`."""
    return "/".join(folder.resolve().parts[-2:])


def _describe_size(image: RGB8) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
