"""Test sets: folders of HR images with their LR, or the held-out patches of a data set.

Every image of a set is decoded and checked before the first score, so that an unusable image ends
the command before it computes or writes anything.
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

BICUBIC_LR = "antialiased bicubic of HR"
_UNREPORTED_NOTES = {"grey expanded to RGB", "16 bit reduced to 8", "alpha dropped"}
"""Notes of `Photo.notes` that are reported in other words or change no score."""
_IMAGE_FORMATS = "PNG, JPEG, WebP, TIFF, BMP"


class ImagePair(NamedTuple):
    """Test image: HR [h w 3] and LR [h/scale w/scale 3]."""

    name: str
    hr: RGB8
    lr: RGB8


class ImageSet(NamedTuple):
    """Test set whose images are read one by one."""

    name: str
    images: int
    """Number of images."""
    lr_source: str
    """Folder of the LR images, or the method that makes them."""
    notes: tuple[str, ...]
    """Conversions that affect the scores, one line each."""
    read_pairs: Callable[[], Iterator[ImagePair]]
    """Function that yields all images in order."""


def open_folder_set(hr: Path, lr: Path | None, *, scale: int, smallest: int) -> ImageSet:
    """Return the test set of a folder of HR images.

    `hr` may be a folder in the usual layout of test sets: HR images in `HR/`, LR images in `LRx4/`.

    Args:
        hr: folder of HR images.
        lr: folder of LR images with the same names; None takes `LRx4/` of that layout (with the given
            scale) if it exists, otherwise antialiased bicubic of HR.
        scale: HR side over LR side.
        smallest: smallest side of an image that can be scored, in pixels.

    Raises:
        UsageError: a folder or an image cannot be used; names it and the fix.
    """
    hr_folder, lr_folder = hr / "HR", hr / f"LRx{scale}"
    if hr_folder.is_dir() and not _find_images(hr):
        lr = lr or (lr_folder if lr_folder.is_dir() else None)
        hr = hr_folder
    hr_paths = _list_images(hr, option="--hr")
    lr_paths = _match_lr_images(hr_paths, lr, scale=scale) if lr else dict.fromkeys(hr_paths)
    grey, deep = [], []
    others: dict[str, list[str]] = {}
    for path in hr_paths:
        photo = _check_pair(path, lr_paths[path], scale=scale, smallest=smallest)
        if photo.grey:
            grey.append(path.stem)
        if photo.bit_depth != 8:
            deep.append(path.stem)
        for note in (note for note in photo.notes if note not in _UNREPORTED_NOTES):
            others.setdefault(note, []).append(path.stem)

    def read_pairs() -> Iterator[ImagePair]:
        for path in hr_paths:
            yield _read_pair(path, lr_paths[path], scale=scale)

    resolved = hr.resolve()
    return ImageSet(
        name=resolved.parent.name if resolved.name.lower() == "hr" else resolved.name,
        images=len(hr_paths),
        lr_source=_shorten_path(lr) if lr else BICUBIC_LR,
        notes=(
            *_note_names(grey, "grey, scored as RGB of three equal channels"),
            *_note_names(deep, "16 bit, reduced to 8"),
            *(line for note, stems in others.items() for line in _note_names(stems, note)),
        ),
        read_pairs=read_pairs,
    )


def open_shards_set(folder: Path, *, scale: int, smallest: int) -> ImageSet:
    """Return the held-out patches of a data set as a test set.

    Raises:
        UsageError: the data set has no held-out patches, another scale, or patches that are too small.
    """
    dataset = open_dataset(folder)
    if dataset.manifest.scale != scale:
        raise UsageError(
            f"--shards {folder}: has scale {dataset.manifest.scale}, not {scale};"
            f" use models of that scale, or without models --scale {dataset.manifest.scale}"
        )
    split = dataset.split("val")
    if not len(split):
        raise UsageError(f"--shards {folder}: has no held-out patches; use --hr FOLDER")
    side = dataset.manifest.hr_size
    if side < smallest:
        raise UsageError(
            f"--shards {folder}: its patches of {side}x{side} are too small to score;"
            f" use shards with patches of at least {smallest} pixels a side, or --hr FOLDER"
        )

    def read_pairs() -> Iterator[ImagePair]:
        for position in range(len(split)):
            pair = split[position]
            yield ImagePair(f"{pair.key:012d}", pair.hr, pair.lr)

    return ImageSet(folder.resolve().name, len(split), "the data set's", (), read_pairs)


def _find_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if looks_like_photo(path.name))


def _list_images(folder: Path, *, option: str) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: no such folder; correct the path")
    paths = _find_images(folder)
    if not paths:
        raise UsageError(f"{option} {folder}: has no images ({_IMAGE_FORMATS}); use another folder")
    _check_stems(paths, option=f"{option} {folder}")
    return paths


def _check_stems(paths: Sequence[Path], *, option: str) -> None:
    """Refuse two files with one stem: pairs and comparison sheets are named by stem."""
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is not path:
            raise UsageError(
                f"{option}: {other.name} and {path.name} differ only in their suffix; remove one"
            )


def _match_lr_images(hr_paths: Sequence[Path], lr: Path, *, scale: int) -> dict[Path, Path | None]:
    """Return the LR file of each HR file: the same stem, or the stem followed by `x4` (with the given scale)."""
    by_stem = {path.stem: path for path in _list_images(lr, option="--lr")}
    partners: dict[Path, Path | None] = {}
    for path in hr_paths:
        names = (path.stem, f"{path.stem}x{scale}", f"{path.stem}_x{scale}")
        partner = next((by_stem[name] for name in names if name in by_stem), None)
        if partner is None:
            raise UsageError(
                f"--lr {lr}: has no image for {path.name}; use LR images with the names of HR"
            )
        partners[path] = partner
    return partners


def _check_pair(path: Path, lr_path: Path | None, *, scale: int, smallest: int) -> Photo:
    """Return the decoded HR image after checking that it can be scored and that its LR image fits.

    Raises:
        UsageError: an image is damaged or too small, or the LR image has another size or colour mode.
    """
    photo = _read_photo(path)
    hr = resize.crop_to_multiple(photo.pixels, scale=scale)
    if min(hr.shape[:2]) < smallest:
        raise UsageError(
            f"{path}: {_format_size(photo.pixels)} is too small to score at x{scale};"
            f" use images of at least {-(-smallest // scale) * scale} pixels a side, or remove it"
        )
    if lr_path is None:
        return photo
    lr = _read_photo(lr_path)
    expected = (hr.shape[0] // scale, hr.shape[1] // scale)
    if lr.pixels.shape[:2] != expected:
        raise UsageError(
            f"{lr_path}: is {_format_size(lr.pixels)}, but {path.name} at x{scale} needs"
            f" {expected[1]}x{expected[0]}; use LR images of this scale"
        )
    if lr.grey and not photo.grey:
        raise UsageError(f"{lr_path}: is grey, but {path.name} is in colour; use LR in colour")
    return photo


def _read_pair(path: Path, lr_path: Path | None, *, scale: int) -> ImagePair:
    hr = np.ascontiguousarray(resize.crop_to_multiple(_read_photo(path).pixels, scale=scale))
    lr = resize.downscale(hr, scale=scale) if lr_path is None else _read_photo(lr_path).pixels
    return ImagePair(path.stem, hr, lr)


def _read_photo(path: Path) -> Photo:
    try:
        return read_photo(path)
    except RejectedPhoto as refused:
        if refused.code == "ALPHA":
            raise UsageError(f"{path}: has transparent pixels; flatten it") from None
        raise UsageError(f"{path}: {refused.reason}; replace or remove it") from None


def _note_names(names: Sequence[str], note: str) -> Iterator[str]:
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{note}: {listed}"


def _shorten_path(folder: Path) -> str:
    """Return the last two names of a path: `Set5/LRx4`."""
    return "/".join(folder.resolve().parts[-2:])


def _format_size(image: RGB8) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
