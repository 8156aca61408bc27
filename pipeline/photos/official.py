"""Official LR images: each photo's partner in `--lr-dir`, found by name and checked by its picture.

Known names, for photo `0001`: `0001`, `0001x4`, `0001x4m` (DIV2K), `0001_LRx4`, `0001_SRF_4_LR`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.options import Options
from pipeline.photos.scan import FoundPhoto, Scan
from pipeline.photos.walk import sanitise_name, stamp_file
from shards.errors import UsageError
from shards.format.png import RGB8
from shards.images import resize
from shards.images.color import UnknownProfile, to_srgb
from shards.images.photos import Photo, RejectedPhoto, read_photo
from shards.images.walk import walk_photos

_HR = re.compile(r"(?:^|[_-])HR(?:[_-]|$)", re.IGNORECASE)
MAX_LR_DIFFERENCE = 16.0
"""Grey levels, mean: an LR image that differs more from the photo's own bicubic shows another picture."""


def pair_with_lr(found: Scan, folders: Sequence[Path], scale: int) -> Scan:
    """Give each photo the path of its LR image, where there is one.

    Raises:
        UsageError: no folder, no partner at all, or a name that means two files.
    """
    partners: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--lr-dir {folder}: there is no such folder")
        _add_lr_folder(partners, folder, scale)
    taken: dict[str, str] = {}
    photos = []
    for photo in found.photos:
        stem = _hr_stem(photo.name)
        if stem in partners and (other := taken.setdefault(stem, photo.name)) != photo.name:
            raise UsageError(
                f"--lr-dir: {partners[stem]} could be of {other} or {photo.name};"
                " give the photos names of their own"
            )
        lr = partners.get(stem)
        photos.append(photo._replace(lr=lr, lr_stamp=stamp_file(lr)) if lr else photo)
    for folder in folders:
        if not any(partners[stem].is_relative_to(folder) for stem in taken):
            raise UsageError(
                f"--lr-dir {folder}: holds no LR image of the photos (such as"
                f" {_hr_stem(found.photos[0].name)}x{scale}.png); check the folder and --scale {scale}"
            )
    return found._replace(photos=tuple(photos))


def lr_listing_sha256(found: Scan) -> str:
    """Digest of the partners' names and sizes."""
    digest = hashlib.sha256()
    for photo in found.photos:
        size = photo.lr_stamp[0] if photo.lr else -1
        name = sanitise_name(photo.lr.name) if photo.lr else ""
        digest.update(f"{photo.name}\0{name}\0{size}\n".encode())
    return digest.hexdigest()


def read_lr(photo: FoundPhoto, image: RGB8, options: Options) -> RGB8:
    """Read a photo's LR image [h/scale w/scale 3] and compare it with the photo [h w 3].

    Raises:
        RejectedPhoto: NO_LR, LR_SIZE, LR_OTHER, or what reading refuses.
    """
    if photo.lr is None:
        raise RejectedPhoto("NO_LR", "has no partner in --lr-dir")
    try:
        read = read_photo(photo.lr, max_megapixels=options.max_megapixels, alpha=options.alpha)
        lr = convert_lr_to_srgb(read, options)
    except RejectedPhoto as refused:
        raise RejectedPhoto(refused.code, f"has an LR image that {refused.reason}") from None
    scale = options.scale
    height, width = image.shape[0] // scale, image.shape[1] // scale
    over = lr.shape[0] - height, lr.shape[1] - width
    if not (0 <= over[0] <= 1 and 0 <= over[1] <= 1):
        raise RejectedPhoto(
            "LR_SIZE", f"is {image.shape[1]}x{image.shape[0]}, its LR {lr.shape[1]}x{lr.shape[0]}"
        )
    lr = np.ascontiguousarray(lr[:height, :width])
    own = resize.downscale(resize.crop_to_multiple(image, scale=scale), scale=scale)
    distance = float(np.abs(_shrink_coarsely(own) - _shrink_coarsely(lr)).mean())
    if distance > MAX_LR_DIFFERENCE:
        raise RejectedPhoto(
            "LR_OTHER", f"and its LR image show different pictures ({distance:.0f} grey levels)"
        )
    return lr


def convert_lr_to_srgb(read: Photo, options: Options) -> RGB8:
    """A photo's pixels, converted by its profile if the options say so.

    Raises:
        RejectedPhoto: PROFILE.
    """
    if not read.icc or options.icc != "convert":
        return read.pixels
    try:
        return to_srgb(read.pixels, read.icc)
    except UnknownProfile as unknown:
        raise RejectedPhoto(
            "PROFILE", f"has a {unknown}; convert it to sRGB or use --icc ignore"
        ) from None


def _shrink_coarsely(image: RGB8) -> RGB8:
    """A quarter of the size, in float: blur and noise of a degraded LR hardly show."""
    size = max(1, image.shape[1] // 4), max(1, image.shape[0] // 4)
    return np.asarray(cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA))


def _add_lr_folder(found: dict[str, Path], folder: Path, scale: int) -> None:
    """Add the paths of LR images by the stem of the photo that they are of."""
    form = re.compile(
        rf"(.+?)(?:[_-]SRF[_-]{scale})?(?:[_-]?LR)?(?:[_-]?x{scale}[a-z]?\d?)?(?:[_-]LR)?",
        re.DOTALL,  # of a name with a line feed
    )
    for place, folders, names in walk_photos(folder, "--lr-dir"):
        folders[:] = [name for name in folders if not _has_other_scales(name, scale)]
        for name in names:
            match = form.fullmatch(os.path.splitext(sanitise_name(name))[0])  # noqa: PTH122
            assert match, name
            path = place / name
            if (other := found.setdefault(match[1], path)) != path:
                raise UsageError(
                    f"--lr-dir: {other} and {path} are both of {match[1]}; name the folder of one scale"
                )


def _has_other_scales(folder: str, scale: int) -> bool:
    """By its name a folder holds HR photos, or LR images of another scale."""
    scaled = re.fullmatch(r"X(\d)", folder)
    return bool(_HR.search(folder)) or bool(scaled and int(scaled[1]) != scale)


def _hr_stem(name: str) -> str:
    stem = os.path.splitext(name.rpartition("/")[2])[0]  # noqa: PTH122
    return re.sub(r"(?:[_-]SRF[_-]\d)?[_-]HR$", "", stem)
