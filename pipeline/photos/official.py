"""Official LR images: paired with the photos by name in `--lr-dir` and compared with their pixels.

Known names for photo `0001`: `0001`, `0001x4`, `0001x4m` (DIV2K), `0001_LRx4`, `0001_SRF_4_LR`.
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
"""Largest mean difference, in grey levels, between an LR image and the photo's own bicubic."""


def pair_with_lr(scan: Scan, folders: Sequence[Path], scale: int) -> Scan:
    """Return the scan with the path of each photo's LR image, if it has one.

    Raises:
        UsageError: a folder is missing or has no matching LR image, or a name is ambiguous.
    """
    lr_images: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"--lr-dir {folder}: does not exist or is not a folder; check the path"
            )
        _add_lr_folder(lr_images, folder, scale)
    paired: dict[str, str] = {}
    photos = []
    for photo in scan.photos:
        stem = _hr_stem(photo.name)
        if stem in lr_images and (other := paired.setdefault(stem, photo.name)) != photo.name:
            raise UsageError(
                f"--lr-dir: {lr_images[stem]} matches both {other} and {photo.name};"
                " give the photos different names"
            )
        lr = lr_images.get(stem)
        photos.append(photo._replace(lr=lr, lr_stamp=stamp_file(lr)) if lr else photo)
    for folder in folders:
        if not any(lr_images[stem].is_relative_to(folder) for stem in paired):
            raise UsageError(
                f"--lr-dir {folder}: has no LR image of the photos (such as"
                f" {_hr_stem(scan.photos[0].name)}x{scale}.png); check the folder and --scale {scale}"
            )
    return scan._replace(photos=tuple(photos))


def lr_listing_sha256(scan: Scan) -> str:
    """Return a digest of the names and sizes of the LR images."""
    digest = hashlib.sha256()
    for photo in scan.photos:
        size = photo.lr_stamp[0] if photo.lr else -1
        name = sanitise_name(photo.lr.name) if photo.lr else ""
        digest.update(f"{photo.name}\0{name}\0{size}\n".encode())
    return digest.hexdigest()


def read_lr(photo: FoundPhoto, image: RGB8, options: Options) -> RGB8:
    """Read a photo's LR image [h/scale w/scale 3] and compare it with the photo [h w 3].

    Raises:
        RejectedPhoto: NO_LR, LR_SIZE, LR_OTHER, or a code of `read_photo` or `convert_to_srgb`.
    """
    if photo.lr is None:
        raise RejectedPhoto("NO_LR", "has no LR image in --lr-dir")
    try:
        read = read_photo(photo.lr, max_megapixels=options.max_megapixels, alpha=options.alpha)
        lr = convert_to_srgb(read, options)
    except RejectedPhoto as refused:
        raise RejectedPhoto(refused.code, f"has an LR image that {refused.reason}") from None
    scale = options.scale
    height, width = image.shape[0] // scale, image.shape[1] // scale
    excess = lr.shape[0] - height, lr.shape[1] - width
    if not (0 <= excess[0] <= 1 and 0 <= excess[1] <= 1):
        raise RejectedPhoto(
            "LR_SIZE", f"is {image.shape[1]}x{image.shape[0]}, its LR {lr.shape[1]}x{lr.shape[0]}"
        )
    lr = np.ascontiguousarray(lr[:height, :width])
    own = resize.downscale(resize.crop_to_multiple(image, scale=scale), scale=scale)
    distance = float(np.abs(_shrink_coarsely(own) - _shrink_coarsely(lr)).mean())
    if distance > MAX_LR_DIFFERENCE:
        raise RejectedPhoto(
            "LR_OTHER", f"and its LR image show different scenes ({distance:.0f} grey levels apart)"
        )
    return lr


def convert_to_srgb(photo: Photo, options: Options) -> RGB8:
    """Return a photo's pixels, converted from its colour profile unless the options ignore it.

    Raises:
        RejectedPhoto: PROFILE.
    """
    if not photo.icc or options.icc != "convert":
        return photo.pixels
    try:
        return to_srgb(photo.pixels, photo.icc)
    except UnknownProfile as unknown:
        raise RejectedPhoto(
            "PROFILE", f"has a {unknown}; convert it to sRGB or use --icc ignore"
        ) from None


def _shrink_coarsely(image: RGB8) -> RGB8:
    """Return an image of a quarter of the size, float, in which blur and noise of LR hardly show."""
    size = max(1, image.shape[1] // 4), max(1, image.shape[0] // 4)
    return np.asarray(cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA))


def _add_lr_folder(lr_images: dict[str, Path], folder: Path, scale: int) -> None:
    """Add the LR images of a folder, keyed by the stem of their photo."""
    pattern = re.compile(
        rf"(.+?)(?:[_-]SRF[_-]{scale})?(?:[_-]?LR)?(?:[_-]?x{scale}[a-z]?\d?)?(?:[_-]LR)?",
        re.DOTALL,  # a name may contain a line feed
    )
    for parent, folders, names in walk_photos(folder, "--lr-dir"):
        folders[:] = [name for name in folders if not _has_other_scales(name, scale)]
        for name in names:
            match = pattern.fullmatch(os.path.splitext(sanitise_name(name))[0])  # noqa: PTH122
            assert match, name
            path = parent / name
            if (other := lr_images.setdefault(match[1], path)) != path:
                raise UsageError(
                    f"--lr-dir: {other} and {path} both match photo {match[1]}; name the folder of one scale"
                )


def _has_other_scales(folder: str, scale: int) -> bool:
    """Whether a folder contains HR photos or LR images of another scale, by its name."""
    scaled = re.fullmatch(r"X(\d)", folder)
    return bool(_HR.search(folder)) or bool(scaled and int(scaled[1]) != scale)


def _hr_stem(name: str) -> str:
    stem = os.path.splitext(name.rpartition("/")[2])[0]  # noqa: PTH122
    return re.sub(r"(?:[_-]SRF[_-]\d)?[_-]HR$", "", stem)
