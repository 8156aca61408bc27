"""Near-duplicate photos: copies in another size, format or brightness, including mirrored ones.

Two 64-bit perceptual hashes are compared: dHash (signs of neighbour differences of a 9x8 thumbnail) and pHash
(signs of the low DCT coefficients of a 32x32 thumbnail). Measured on photos, recompression and halving
change 0 or 1 bits of a hash and a gamma of 1.2 up to 4; different photos differ in about 32. Crops of more than
a few percent are not detected. Images that vary only from top to bottom (stripes, a gradient) look
alike, because their dHash is 0 and only seven bits of the pHash differ. Integer arithmetic gives the same
bits on every machine.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.photos.accept import Luma, compute_luma
from pipeline.photos.walk import sanitise_name
from shards.errors import UsageError
from shards.images.photos import RejectedPhoto, read_photo
from shards.images.walk import walk_photos

MAX_DISTANCE = 3
"""Largest number of bits in which one of the two hashes may differ."""
MAX_DISTANCE_OTHER = 10
"""Largest number of bits in which the other hash may differ."""
_FIFTHS = [np.uint64(sum(1 << bit for bit in range(low, 64, 5))) for low in range(5)]
_MASKS = [one | other for one, other in itertools.combinations(_FIFTHS, 2)]
"""Masks of two fifths of the bits. Two hashes that differ in MAX_DISTANCE bits agree under at least one mask, others
rarely do. Each fifth has bits of all rows and columns, because a plain sky or margin fixes a whole row."""
_QUARTERS = [np.uint64(0xFFFF << low) for low in range(0, 64, 16)]
_PAIRS_PER_BATCH = 1 << 18
"""Pairs of hashes compared at a time."""

Hashes = npt.NDArray[np.uint64]
"""One hash of N photos [N], or their dHashes and pHashes [2 N]."""
Indices = npt.NDArray[np.intp]
"""Indices of photos, or of groups."""


class PerceptualHash(msgspec.Struct, frozen=True):
    """The hashes of a photo and of its mirror image."""

    dhash: int
    phash: int
    mirrored_dhash: int
    mirrored_phash: int


def hash_photo(luma: Luma) -> PerceptualHash:
    """Hash the luma [h w] of an upright photo."""
    while min(luma.shape) >= 2 * 128:  # halving is ten times as fast as other factors
        height, width = luma.shape
        even = luma[: height - height % 2, : width - width % 2]
        halved = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        luma = np.asarray(halved, np.uint8)
    small = np.asarray(cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA), np.int64)
    fine = np.asarray(cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA), np.int64)
    return PerceptualHash(
        _difference_hash(small),
        _dct_hash(fine),
        _difference_hash(small[:, ::-1]),
        _dct_hash(fine[:, ::-1]),
    )


def hash_folder(folders: Sequence[Path]) -> list[tuple[str, PerceptualHash]]:
    """Return names and hashes of all images below some folders, sorted by name.

    Raises:
        UsageError: a folder has no images, or an image cannot be read.
    """
    hashes = []
    for folder in folders:
        walked = walk_photos(folder, "--exclude-like")
        paths = [parent / name for parent, _, names in walked for name in names]
        if not paths:
            raise UsageError(f"--exclude-like {folder}: has no images; name a test set")
        for path in paths:
            try:
                photo = read_photo(path, alpha="drop")
            except RejectedPhoto as refused:
                raise UsageError(f"--exclude-like {path}: {refused.reason}") from None
            name = sanitise_name(f"{folder.name}/{path.relative_to(folder)}")
            hashes.append((name, hash_photo(compute_luma(photo.pixels))))
    return sorted(hashes, key=lambda named: named[0])


def is_near_duplicate(one: PerceptualHash, other: PerceptualHash) -> bool:
    """Whether two photos show the same scene, possibly mirrored."""
    return bool(find_resembling([one], [other]))


def group_near_duplicates(hashes: Sequence[PerceptualHash]) -> list[list[int]]:
    """Return the groups of two or more photos that are near-duplicates, directly or through others."""
    distinct: dict[PerceptualHash, int] = {}
    indices = [distinct.setdefault(photo, len(distinct)) for photo in hashes]
    plain, mirrored = _hash_arrays(list(distinct))
    leaders = np.arange(len(distinct))
    for one, other in _find_close_pairs(plain, mirrored, leaders, plain, leaders):
        _join_groups(leaders, one, other)
    members: dict[int, list[int]] = defaultdict(list)
    for number, leader in enumerate(leaders[indices].tolist()):
        members[leader].append(number)
    return [group for group in members.values() if len(group) > 1]


def find_resembling(
    hashes: Sequence[PerceptualHash], others: Sequence[PerceptualHash]
) -> dict[int, int]:
    """Return, for each photo that resembles one of `others`, the index of that one.

    Among several, the one that agrees in the first quarter of a hash wins, dHash before pHash; then the first.
    """
    plain, mirrored = _hash_arrays(hashes)
    other_plain, _ = _hash_arrays(others)
    group, other_group = np.zeros(len(hashes), np.intp), np.ones(len(others), np.intp)
    none = np.iinfo(np.intp).max
    best = np.full(len(hashes), none)
    for one, other in _find_close_pairs(plain, mirrored, group, other_plain, other_group):
        agree = [
            (own[kind, one] ^ other_plain[kind, other]) & quarter == 0
            for kind, quarter, own in itertools.product((0, 1), _QUARTERS, (plain, mirrored))
        ]
        np.minimum.at(best, one, np.argmax(agree, axis=0) * len(others) + other)
    return {int(one): int(best[one]) % len(others) for one in np.flatnonzero(best < none)}


def _hash_arrays(hashes: Sequence[PerceptualHash]) -> tuple[Hashes, Hashes]:
    """Return the hashes of photos and of their mirror images, [2 N] each."""
    plain = [[photo.dhash for photo in hashes], [photo.phash for photo in hashes]]
    mirrored = [
        [photo.mirrored_dhash for photo in hashes],
        [photo.mirrored_phash for photo in hashes],
    ]
    return np.array(plain, np.uint64), np.array(mirrored, np.uint64)


def _find_close_pairs(
    plain: Hashes, mirrored: Hashes, groups: Indices, others: Hashes, other_groups: Indices
) -> Iterator[tuple[Indices, Indices]]:
    """Yield near-duplicate pairs from different groups, in batches; some pairs come several times.

    The caller may join groups between batches; each mask compares only photos whose groups still differ.
    """
    kinds = (0, 1), (1, 0)
    for (first, second), mask, own in itertools.product(kinds, _MASKS, (plain, mirrored)):
        one, other, ranges = _bucket_ranges(
            own[first] & mask, groups, others[first] & mask, other_groups
        )
        left, right = own[:, one], others[:, other]
        for row, rank in itertools.chain.from_iterable(itertools.starmap(_expand_ranges, ranges)):
            differ = left[first][row] ^ right[first][rank]
            close = np.bitwise_count(differ) <= MAX_DISTANCE
            if mask != _MASKS[0]:
                close &= differ != 0  # the first mask has already found equal hashes
            row, rank = row[close], rank[close]
            near = np.bitwise_count(left[second][row] ^ right[second][rank]) <= MAX_DISTANCE_OTHER
            yield one[row[near]], other[rank[near]]


def _bucket_ranges(
    keys: Hashes, groups: Indices, other_keys: Hashes, other_groups: Indices
) -> tuple[Indices, Indices, list[tuple[Indices, Indices]]]:
    """Return which photos to compare with which others: equal keys, different groups.

    Returns:
        photos and others, both sorted by key, and two lists of ranges: for each photo, the first and last
        position in `others` with a lower group, and those with a higher group.
    """
    one, other = np.lexsort((groups, keys)), np.lexsort((other_groups, other_keys))
    ordered = other_keys[other]
    first = np.searchsorted(ordered, keys[one])
    last = np.searchsorted(ordered, keys[one], "right")
    shared = first < last
    one, first, last = one[shared], first[shared], last[shared]
    # combine key and group in one sortable number
    count = 1 + max(groups.max(initial=0), other_groups.max(initial=0))
    own = first * count + groups[one]
    ranks = np.searchsorted(ordered, ordered) * count + other_groups[other]
    lower = first, np.searchsorted(ranks, own)
    higher = np.searchsorted(ranks, own, "right"), last
    return one, other, [lower, higher]


def _expand_ranges(first: Indices, last: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs of a range's index and a number in that range, in batches."""
    ends = np.cumsum(last - first)
    total, shift = int(ends[-1]) if len(ends) else 0, last - ends
    for start in range(0, total, _PAIRS_PER_BATCH):
        stop = min(start + _PAIRS_PER_BATCH, total)
        ranges = np.arange(np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop) + 1)
        begins = ends[ranges] - last[ranges] + first[ranges]
        index = np.repeat(ranges, ends[ranges].clip(max=stop) - begins.clip(min=start))
        yield index, np.arange(start, stop) + shift[index]


def _join_groups(leaders: Indices, one: Indices, other: Indices) -> None:
    """Join the groups of some pairs; the first photo of a group is its leader."""
    while np.any(apart := leaders[one] != leaders[other]):
        one, other = one[apart], other[apart]
        pair = leaders[one], leaders[other]
        np.minimum.at(leaders, np.maximum(*pair), np.minimum(*pair))
        while np.any(leaders != (above := leaders[leaders])):
            leaders[:] = above


def _difference_hash(small: npt.NDArray[np.int64]) -> int:
    return _pack_bits(small[:, 1:] > small[:, :-1])


def _dct_hash(fine: npt.NDArray[np.int64]) -> int:
    coefficients = (_DCT @ fine @ _DCT.T).flatten()
    rest = np.sort(coefficients[1:])  # without the mean brightness
    return _pack_bits(coefficients > (rest[31] + rest[30]) // 2)


def _pack_bits(bits: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def _dct_matrix() -> npt.NDArray[np.int64]:
    """Return the eight lowest rows of a 32-point DCT-II, times 4096."""
    row, column = np.mgrid[:8, :32]
    waves = np.cos(np.pi * row * (2 * column + 1) / 64)
    return np.asarray(np.rint(4096 * waves), np.int64)


_DCT = _dct_matrix()
