"""One photo as it will be cut: read strictly, in sRGB, not blocky, large enough; or why not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from pipeline.options import MAX_BLOCKINESS, Options
from pipeline.photos.official import convert_lr_to_srgb, read_lr
from pipeline.photos.scan import FoundPhoto
from shards.errors import UsrganError
from shards.format.png import RGB8
from shards.images import resize
from shards.images.photos import Photo, RejectedPhoto, decode_photo, read_photo
from shards.io import remote

Luma = npt.NDArray[np.uint8]
_BLOCKINESS_SIDE = 1024
"""Blocks are looked for in the middle of a photo, at most so many pixels each way."""


class AcceptedPhoto(NamedTuple):
    """A photo that is used."""

    image: RGB8
    """[h w 3], after `pre_scale`."""
    luma: Luma
    """[h w], of `image`."""
    lr: RGB8 | None
    """Its official LR image, where the options name one."""
    sha256: str
    """SHA-256 of the file."""
    pixels: str
    """Digest of `image`: the same for a copy in another lossless format."""
    blockiness: float
    pre_scale: float
    """Scale of `image` relative to the photo; 1.0 if it was not scaled."""


def accept_photo(photo: FoundPhoto, options: Options) -> AcceptedPhoto:
    """Read a photo and make it ready to cut.

    Raises:
        RejectedPhoto: with the reason.
    """
    read = _read_lr(photo, options)
    image, blocks, factor = convert_lr_to_srgb(read, options), 1.0, 1
    if options.flags_blocks:
        blocks = measure_blockiness(image)
        if options.max_blockiness and blocks > options.max_blockiness:
            raise RejectedPhoto(
                "BLOCKY", f"shows the blocks of its JPEG ({blocks:.2f} x the other steps)"
            )
        if blocks > MAX_BLOCKINESS:
            factor = round(1 / options.pre_scale)
    if factor > 1:
        image = resize.downscale(resize.crop_to_multiple(image, scale=factor), scale=factor)
    _check_size(image, options)
    partner = read_lr(photo, image, options) if options.lr_dir else None
    digest = pixel_digest(image)
    return AcceptedPhoto(
        image, compute_luma(image), partner, read.sha256, digest, blocks, 1 / factor
    )


def _read_lr(photo: FoundPhoto, options: Options) -> Photo:
    if isinstance(photo.path, Path):
        return read_photo(photo.path, max_megapixels=options.max_megapixels, alpha=options.alpha)
    try:
        content = remote.read_file(photo.path)
    except FileNotFoundError:
        content = b""
    if len(content) != photo.size:
        raise UsrganError(f"{photo.path}: was changed during the run; run the same command again")
    return decode_photo(content, max_megapixels=options.max_megapixels, alpha=options.alpha)


def compute_luma(image: RGB8) -> Luma:
    """BT.601 luma [h w] of an image [h w 3], rounded."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def pixel_digest(image: RGB8) -> str:
    """SHA-256 of an image's size and of the CRC-32 of each of its rows: a seventh of the time.

    It separates photos that differ by chance, not by intent: rows with equal CRC can be constructed.
    """
    rows = np.ascontiguousarray(image)
    digest = hashlib.sha256(b"%d %d\n" % image.shape[:2])
    digest.update(np.array(list(map(isal_zlib.crc32, rows)), "<u4").tobytes())
    return digest.hexdigest()


def measure_blockiness(image: RGB8) -> float:
    """How much larger the steps of luma are on one line of eight than on the others; about 1 if clean.

    JPEG codes 8x8 blocks by themselves, so its quantisation shows in steps every 8 pixels, at any
    offset if the picture was cut later. Medians over lines, for one long edge is no block; geometric
    mean of both directions. 4:2:0 photos of quality 75 have about 1.3, of quality 50 about 1.6.
    """
    height, width = image.shape[:2]
    top, left = max(0, (height - _BLOCKINESS_SIDE) // 2), max(0, (width - _BLOCKINESS_SIDE) // 2)
    middle = np.ascontiguousarray(
        image[top : top + _BLOCKINESS_SIDE, left : left + _BLOCKINESS_SIDE]
    )
    luma = compute_luma(middle)
    if min(luma.shape) < 33:
        return 1.0
    product = _edge_step_ratio(luma) * _edge_step_ratio(np.ascontiguousarray(luma.T))
    return round(float(product**0.5), 3)


def _edge_step_ratio(luma: npt.NDArray[np.uint8]) -> float:
    steps = cv2.absdiff(luma[1:], luma[:-1]).sum(axis=1, dtype=np.int64)
    whole = len(steps) // 8 * 8
    phases = np.median(steps[:whole].reshape(-1, 8), axis=0)
    loudest = int(phases.argmax())
    others = float(np.median(np.delete(phases, loudest)))
    return (float(phases[loudest]) + 1) / (others + 1)


def _check_size(image: RGB8, options: Options) -> None:
    height, width = image.shape[:2]
    if min(height, width) < options.stored_size:
        raise RejectedPhoto(
            "TOO_SMALL",
            f"is {width}x{height}, smaller than one {options.stored_size}x{options.stored_size} patch",
        )
