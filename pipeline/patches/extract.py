"""Extraction of patch pairs from one photo: LR of the whole photo, aligned positions, detail, rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.options import FLAT_DETAIL, Options
from pipeline.patches.degrade import MARGIN, degrade
from pipeline.photos.accept import AcceptedPhoto
from shards.format import codec
from shards.format.png import RGB8
from shards.images import resize

PATCH_AREAS_PER_PHOTO = 4
"""Largest number of random patches per photo, as a multiple of its area in HR patches."""


class EncodedPair(NamedTuple):
    """One encoded patch pair with its position and detail."""

    rank: int
    """Sort key of the global order, a uniform 64-bit number."""
    x: int
    y: int
    luma_std: float
    gradient: float
    hr: bytes
    lr: bytes


def extract_patches(photo: AcceptedPhoto, options: Options) -> Iterator[EncodedPair]:
    """Yield a photo's encoded pairs, in the order of their ranks.

    LR is cut from the official LR image, or from the antialiased bicubic x1/scale of the whole photo (cropped to a
    multiple of the scale). So the LR of a patch depends on pixels around the patch, as at inference.
    """
    scale, size, pixels = options.scale, options.stored_size, photo.pixels
    hr = resize.crop_to_multiple(photo.image, scale=scale)
    lr = photo.lr
    degraded = options.degrade == "realesrgan"
    if lr is None and options.lr_from == "image" and not degraded:
        lr = resize.downscale(hr, scale=scale, kernel=options.kernel)
    corners = choose_positions(hr.shape[1], hr.shape[0], pixels, options)
    for rank, x, y in sorted((patch_rank(options.seed, pixels, x, y), x, y) for x, y in corners):
        luma_std, gradient = measure_detail(photo.luma[y : y + size, x : x + size])
        if not is_kept(luma_std, rank, options):
            continue
        patch = hr[y : y + size, x : x + size]
        if degraded:
            lr_patch = _degrade_patch(
                hr, x, y, options, degradation_key(options.seed, pixels, x, y)
            )
        elif lr is None:
            lr_patch = resize.downscale(patch, scale=scale, kernel=options.kernel)
        else:
            left, top, side = x // scale, y // scale, size // scale
            lr_patch = lr[top : top + side, left : left + side]
        yield EncodedPair(
            rank,
            x,
            y,
            luma_std,
            gradient,
            codec.encode(patch, options.codec),
            codec.encode(lr_patch, options.codec),
        )


def degradation_key(seed: int, pixels: str, x: int, y: int) -> str:
    """Return the key that alone decides the random degradation of a patch."""
    return f"{seed} {pixels} {x} {y}"


def _degrade_patch(hr: RGB8, x: int, y: int, options: Options, key: str) -> RGB8:
    """Return the LR of a patch, degraded together with a margin around it."""
    scale, size = options.scale, options.stored_size
    left, top = max(0, x - MARGIN * scale), max(0, y - MARGIN * scale)
    region = hr[top : y + size + MARGIN * scale, left : x + size + MARGIN * scale]
    degraded = degrade(region, scale=scale, key=key)
    row, column, side = (y - top) // scale, (x - left) // scale, size // scale
    return np.ascontiguousarray(degraded[row : row + side, column : column + side])


def is_kept(luma_std: float, rank: int, options: Options) -> bool:
    """Whether a patch is used: `keep_flat` of the flat ones, and none below `min_detail`.

    The low 32 bits of the rank are the random draw; the order of patches hardly depends on them.
    """
    if luma_std < options.min_detail:
        return False
    return luma_std >= FLAT_DETAIL or rank % 2**32 < options.keep_flat * 2**32


def choose_positions(
    width: int, height: int, pixels: str, options: Options
) -> list[tuple[int, int]]:
    """Return the left and top edges of a photo's patches: distinct multiples of the scale.

    Random: `patches_per_image` positions, at most PATCH_AREAS_PER_PHOTO per patch area, drawn by Philox keyed with
    seed and pixels. Grid: every `grid` pixels, and the last one at the far edge.
    """
    size, scale = options.stored_size, options.scale
    if options.grid:
        columns, rows = (_grid_positions(side, size, options.grid) for side in (width, height))
        return [(x, y) for y in rows for x in columns]
    free_columns, free_rows = (width - size) // scale + 1, (height - size) // scale + 1
    free = free_columns * free_rows
    allowed = max(1, PATCH_AREAS_PER_PHOTO * width * height // size**2)
    count = min(options.patches_per_image, allowed, free)
    drawn = _distinct_positions(free, count, f"usrgan positions {options.seed} {pixels}")
    return [(scale * int(at % free_columns), scale * int(at // free_columns)) for at in drawn]


def patch_rank(seed: int, pixels: str, x: int, y: int) -> int:
    """Return a patch's sort key in the global shuffle, a function of seed, photo and position."""
    name = f"usrgan rank {seed} {pixels} {x} {y}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def measure_detail(luma: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return standard deviation and mean absolute neighbour difference of luma, in grey levels.

    Integer sums give the same digits on every processor. `round` is needed because OpenCV returns some sums as the
    square of a rounded root.
    """
    total = round(cv2.norm(luma, cv2.NORM_L1))
    squares = round(cv2.norm(luma, cv2.NORM_L2SQR))  # exact below 2**52
    down = round(cv2.norm(luma[1:], luma[:-1], cv2.NORM_L1))
    across = round(cv2.norm(luma[:, 1:], luma[:, :-1], cv2.NORM_L1))
    pairs = 2 * luma.size - sum(luma.shape)
    luma_std = (luma.size * squares - total * total) ** 0.5 / luma.size
    return round(luma_std, 3), round((down + across) / pairs, 3)


def _grid_positions(side: int, size: int, stride: int) -> list[int]:
    """Return edges every `stride` pixels, plus one at the far edge if a strip remains."""
    edges = list(range(0, side - size + 1, stride))
    return edges if edges[-1] == side - size else [*edges, side - size]


def _distinct_positions(free: int, count: int, name: str) -> npt.NDArray[np.int64]:
    """Return the first `count` distinct numbers below `free` of a random stream keyed by `name`."""
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)
    stream = np.random.Philox(key=key)
    if 3 * count > free:
        shuffled = np.argsort(stream.random_raw(free), kind="stable")
        return shuffled[:count].astype(np.int64)
    drawn = (stream.random_raw(3 * count + 16) % np.uint64(free)).astype(np.int64)
    first = np.sort(np.unique(drawn, return_index=True)[1])[:count]
    assert len(first) == count, (free, count)
    return drawn[first]
