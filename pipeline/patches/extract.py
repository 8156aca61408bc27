"""One photo to its patch pairs: LR of the whole photo, aligned positions, detail, rank."""

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
"""A photo gives at most this many random patches for each HR patch that its area holds."""


class PhotoPatches(NamedTuple):
    """One encoded patch pair and what the index says of it."""

    rank: int
    """Place in the global order, a uniform 64-bit number."""
    x: int
    y: int
    luma_std: float
    gradient: float
    hr: bytes
    lr: bytes


def extract_patches(photo: AcceptedPhoto, options: Options) -> Iterator[PhotoPatches]:
    """Cut a photo into encoded pairs, in the order of their ranks.

    LR is the antialiased bicubic x1/scale of the whole photo (cropped to a multiple of the scale),
    so a patch's LR saw the pixels around the patch, as at inference; or its official LR image.
    """
    scale, size, pixels = options.scale, options.stored_size, photo.pixels
    hr = resize.crop_to_multiple(photo.image, scale=scale)
    lr = photo.lr
    degraded = options.degrade == "realesrgan"
    if lr is None and options.lr_from == "image" and not degraded:
        lr = resize.downscale(hr, scale=scale, kernel=options.kernel)
    corners = choose_positions(hr.shape[1], hr.shape[0], pixels, options)
    for place, x, y in sorted((patch_rank(options.seed, pixels, x, y), x, y) for x, y in corners):
        spread, gradient = measure_detail(photo.luma[y : y + size, x : x + size])
        if not is_kept(spread, place, options):
            continue
        patch = hr[y : y + size, x : x + size]
        if degraded:
            small = _degrade_patch(hr, x, y, options, degradation_key(options.seed, pixels, x, y))
        elif lr is None:
            small = resize.downscale(patch, scale=scale, kernel=options.kernel)
        else:
            left, top, side = x // scale, y // scale, size // scale
            small = lr[top : top + side, left : left + side]
        yield PhotoPatches(
            place,
            x,
            y,
            spread,
            gradient,
            codec.encode(patch, options.codec),
            codec.encode(small, options.codec),
        )


def degradation_key(seed: int, pixels: str, x: int, y: int) -> str:
    """Return the key of a patch's degradation: its random numbers depend on nothing else."""
    return f"{seed} {pixels} {x} {y}"


def _degrade_patch(hr: RGB8, x: int, y: int, options: Options, key: str) -> RGB8:
    """LR of a patch, degraded together with what lies around it."""
    scale, size = options.scale, options.stored_size
    left, top = max(0, x - MARGIN * scale), max(0, y - MARGIN * scale)
    region = hr[top : y + size + MARGIN * scale, left : x + size + MARGIN * scale]
    made = degrade(region, scale=scale, key=key)
    row, column, side = (y - top) // scale, (x - left) // scale, size // scale
    return np.ascontiguousarray(made[row : row + side, column : column + side])


def is_kept(luma_std: float, place: int, options: Options) -> bool:
    """Whether a patch is used: flat ones are thinned by lot, and none is below `min_detail`.

    The lot is the low end of the rank, which the order of patches hardly depends on.
    """
    if luma_std < options.min_detail:
        return False
    return luma_std >= FLAT_DETAIL or place % 2**32 < options.keep_flat * 2**32


def choose_positions(
    width: int, height: int, pixels: str, options: Options
) -> list[tuple[int, int]]:
    """Left and top edges (multiples of the scale) of a photo's patches; no position twice.

    Random positions: `patches_per_image`, but at most PER_AREA for each whole patch area, drawn by
    Philox keyed with seed and pixels. Grid: every `grid` pixels, and the last at the far edge.
    """
    size, scale = options.stored_size, options.scale
    if options.grid:
        columns, rows = (_grid_positions(side, size, options.grid) for side in (width, height))
        return [(x, y) for y in rows for x in columns]
    columns_free, rows_free = (width - size) // scale + 1, (height - size) // scale + 1
    free = columns_free * rows_free
    allowed = max(1, PATCH_AREAS_PER_PHOTO * width * height // size**2)
    wanted = min(options.patches_per_image, allowed, free)
    drawn = _distinct_positions(free, wanted, f"usrgan positions {options.seed} {pixels}")
    return [(scale * int(at % columns_free), scale * int(at // columns_free)) for at in drawn]


def patch_rank(seed: int, pixels: str, x: int, y: int) -> int:
    """The place of a patch in the global shuffle, a function of seed, photo and position alone."""
    name = f"usrgan rank {seed} {pixels} {x} {y}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def measure_detail(luma: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Standard deviation and mean absolute neighbour difference of luma, grey levels.

    Sums of integers, so that every processor gets the same digits; OpenCV gives some as the square of a
    root, which may lie just below.
    """
    total = round(cv2.norm(luma, cv2.NORM_L1))
    squares = round(cv2.norm(luma, cv2.NORM_L2SQR))  # exact below 2**52
    down = round(cv2.norm(luma[1:], luma[:-1], cv2.NORM_L1))
    across = round(cv2.norm(luma[:, 1:], luma[:, :-1], cv2.NORM_L1))
    pairs = 2 * luma.size - sum(luma.shape)
    spread = (luma.size * squares - total * total) ** 0.5 / luma.size
    return round(spread, 3), round((down + across) / pairs, 3)


def _grid_positions(side: int, size: int, stride: int) -> list[int]:
    """Edges every `stride` pixels, and one at the far edge where a strip would be left over."""
    edges = list(range(0, side - size + 1, stride))
    return edges if edges[-1] == side - size else [*edges, side - size]


def _distinct_positions(free: int, wanted: int, name: str) -> npt.NDArray[np.int64]:
    """The first `wanted` distinct numbers below `free` of a stream keyed by `name`."""
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)
    stream = np.random.Philox(key=key)
    if 3 * wanted > free:
        shuffled = np.argsort(stream.random_raw(free), kind="stable")
        return shuffled[:wanted].astype(np.int64)
    drawn = (stream.random_raw(3 * wanted + 16) % np.uint64(free)).astype(np.int64)
    first = np.sort(np.unique(drawn, return_index=True)[1])[:wanted]
    assert len(first) == wanted, (free, wanted)
    return drawn[first]
