"""Photos that look alike: copies in another size, format or brightness, and mirrored ones.

Two 64-bit perceptual hashes: dHash (signs of neighbour differences on a 9x8 thumbnail) and pHash
(signs of the low DCT coefficients of a 32x32 one). Measured on photos: recompression and halving
move a hash by 0 or 1 bits, a gamma of 1.2 by up to 4, different photos lie around 32 apart. A crop
of more than a few percent is out of their reach. All arithmetic is on integers, so every machine
computes the same bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.admit import Luma, luma_of
from pipeline.scan import plain_name, walk
from shards.errors import UsageError
from shards.photos import RejectedPhoto, read_photo

CLOSE = 3
"""Bits in which one of the two hashes may differ; four bands of 16 bits find all such pairs."""
BOTH = 10
"""Bits in which the other one may differ."""
_BANDS = range(0, 64, 16)


class Look(msgspec.Struct, frozen=True):
    """The hashes of a photo and of its mirror image."""

    dhash: int
    phash: int
    mirrored_dhash: int
    mirrored_phash: int


def look_of(luma: Luma) -> Look:
    """Hash the luma [h w] of an upright photo."""
    while min(luma.shape) >= 2 * 128:  # halving is ten times as fast as other factors
        height, width = luma.shape
        whole = luma[: height - height % 2, : width - width % 2]
        halved = cv2.resize(whole, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        luma = np.asarray(halved, np.uint8)
    small = np.asarray(cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA), np.int64)
    fine = np.asarray(cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA), np.int64)
    return Look(_dhash(small), _phash(fine), _dhash(small[:, ::-1]), _phash(fine[:, ::-1]))


def looks_below(folders: Sequence[Path]) -> list[tuple[str, Look]]:
    """Names and looks of the pictures below some folders, sorted.

    Raises:
        UsageError: a folder holds no pictures, or one cannot be read.
    """
    found = []
    for folder in folders:
        walked = walk(folder, "--exclude-like")
        paths = [place / name for place, _, names in walked for name in names]
        if not paths:
            raise UsageError(f"--exclude-like {folder}: holds no pictures; name a test set")
        for path in paths:
            try:
                photo = read_photo(path, alpha="drop")
            except RejectedPhoto as refused:
                raise UsageError(f"--exclude-like {path}: {refused.reason}") from None
            name = plain_name(f"{folder.name}/{path.relative_to(folder)}")
            found.append((name, look_of(luma_of(photo.pixels))))
    return sorted(found, key=lambda each: each[0])


def alike(one: Look, other: Look) -> bool:
    """Whether two photos show the same, one of them mirrored or not."""
    return _near(one.dhash ^ other.dhash, one.phash ^ other.phash) or _near(
        one.mirrored_dhash ^ other.dhash, one.mirrored_phash ^ other.phash
    )


def groups(looks: Sequence[Look]) -> list[list[int]]:
    """The sets of two and more photos that are alike, directly or through others."""
    parent = list(range(len(looks)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in _candidates(looks, looks):
        if one != other and root(one) != root(other) and alike(looks[one], looks[other]):
            parent[root(one)] = root(other)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(looks)):
        members[root(number)].append(number)
    return [group for group in members.values() if len(group) > 1]


def resembling(looks: Sequence[Look], others: Sequence[Look]) -> dict[int, int]:
    """For each photo that is like one of `others`: which."""
    found: dict[int, int] = {}
    for one, other in _candidates(looks, others):
        if one not in found and alike(looks[one], others[other]):
            found[one] = other
    return found


def _near(dhash: int, phash: int) -> bool:
    bits = dhash.bit_count(), phash.bit_count()
    return min(bits) <= CLOSE and max(bits) <= BOTH


def _candidates(looks: Sequence[Look], others: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band of 16 bits: among them all whose hash differs in CLOSE bits."""
    for name in ("dhash", "phash"):
        for band in _BANDS:
            index: dict[int, list[int]] = defaultdict(list)
            for number, other in enumerate(others):
                index[getattr(other, name) >> band & 0xFFFF].append(number)
            for number, look in enumerate(looks):
                for hashed in (getattr(look, name), getattr(look, f"mirrored_{name}")):
                    for other_number in index.get(hashed >> band & 0xFFFF, ()):
                        yield number, other_number


def _dhash(small: npt.NDArray[np.int64]) -> int:
    return _packed(small[:, 1:] > small[:, :-1])


def _phash(fine: npt.NDArray[np.int64]) -> int:
    coefficients = (_DCT @ fine @ _DCT.T).flatten()
    rest = np.sort(coefficients[1:])  # the mean brightness says nothing
    return _packed(coefficients > (rest[31] + rest[30]) // 2)


def _packed(bits: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def _dct_rows() -> npt.NDArray[np.int64]:
    """The eight lowest rows of a 32-point DCT-II, in 1/4096."""
    row, place = np.mgrid[:8, :32]
    waves = np.cos(np.pi * row * (2 * place + 1) / 64)
    return np.asarray(np.rint(4096 * waves), np.int64)


_DCT = _dct_rows()
