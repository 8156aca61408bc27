"""Near-duplicate photos: copies in another size, format or brightness, mirrored ones included.

Two 64-bit perceptual hashes: dHash (signs of neighbour differences on a 9x8 thumbnail) and pHash
(signs of the low DCT coefficients of a 32x32 one). Measured on photos: recompression and halving
move a hash by 0 or 1 bits, a gamma of 1.2 by up to 4, different photos lie around 32 apart. A crop
of more than a few percent is out of their reach. Pictures that only vary from top to bottom (stripes,
a gradient) are all alike: their dHash is 0, and but seven bits of the pHash tell them apart. All
arithmetic is on integers, so every machine computes the same bits.
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
"""Bits in which one of the two hashes may differ."""
MAX_DISTANCE_SUM = 10
"""Bits in which the other one may differ."""
_FIFTHS = [np.uint64(sum(1 << bit for bit in range(low, 64, 5))) for low in range(5)]
_MASKS = [one | other for one, other in itertools.combinations(_FIFTHS, 2)]
"""Two hashes that differ in CLOSE bits agree in two fifths of their bits, and others seldom do. Each fifth has
bits of all rows and columns: a plain sky or margin sets a whole row and leaves the other fifths meaningful."""
_QUARTERS = [np.uint64(0xFFFF << low) for low in range(0, 64, 16)]
_PAIRS_PER_BATCH = 1 << 18
"""Pairs that are compared at once."""

Hashes = npt.NDArray[np.uint64]
"""One hash of N photos, [N], or their dHashes and pHashes, [2 N]."""
Indices = npt.NDArray[np.intp]


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
        whole = luma[: height - height % 2, : width - width % 2]
        halved = cv2.resize(whole, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
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
    """Names and looks of the pictures below some folders, sorted.

    Raises:
        UsageError: a folder holds no pictures, or one cannot be read.
    """
    found = []
    for folder in folders:
        walked = walk_photos(folder, "--exclude-like")
        paths = [place / name for place, _, names in walked for name in names]
        if not paths:
            raise UsageError(f"--exclude-like {folder}: holds no pictures; name a test set")
        for path in paths:
            try:
                photo = read_photo(path, alpha="drop")
            except RejectedPhoto as refused:
                raise UsageError(f"--exclude-like {path}: {refused.reason}") from None
            name = sanitise_name(f"{folder.name}/{path.relative_to(folder)}")
            found.append((name, hash_photo(compute_luma(photo.pixels))))
    return sorted(found, key=lambda each: each[0])


def is_near_duplicate(one: PerceptualHash, other: PerceptualHash) -> bool:
    """Whether two photos show the same, one of them mirrored or not."""
    return bool(find_resembling([one], [other]))


def group_near_duplicates(looks: Sequence[PerceptualHash]) -> list[list[int]]:
    """The sets of two and more photos that are alike, directly or through others."""
    distinct: dict[PerceptualHash, int] = {}
    places = [distinct.setdefault(look, len(distinct)) for look in looks]
    plain, mirrored = _hash_arrays(list(distinct))
    leaders = np.arange(len(distinct))
    for one, other in _find_close_pairs(plain, mirrored, leaders, plain, leaders):
        _join_groups(leaders, one, other)
    members: dict[int, list[int]] = defaultdict(list)
    for number, leader in enumerate(leaders[places].tolist()):
        members[leader].append(number)
    return [group for group in members.values() if len(group) > 1]


def find_resembling(
    looks: Sequence[PerceptualHash], others: Sequence[PerceptualHash]
) -> dict[int, int]:
    """For each photo that is like one of `others`: which.

    Of several, the one that agrees in the foremost quarter of a hash, dHash before pHash; then the first.
    """
    plain, mirrored = _hash_arrays(looks)
    tests, _ = _hash_arrays(others)
    photo, test = np.zeros(len(looks), np.intp), np.ones(len(others), np.intp)
    none = np.iinfo(np.intp).max
    best = np.full(len(looks), none)
    for one, other in _find_close_pairs(plain, mirrored, photo, tests, test):
        agree = [
            (shown[which, one] ^ tests[which, other]) & quarter == 0
            for which, quarter, shown in itertools.product((0, 1), _QUARTERS, (plain, mirrored))
        ]
        np.minimum.at(best, one, np.argmax(agree, axis=0) * len(others) + other)
    return {int(one): int(best[one]) % len(others) for one in np.flatnonzero(best < none)}


def _hash_arrays(looks: Sequence[PerceptualHash]) -> tuple[Hashes, Hashes]:
    """Return the hashes of the photos and of their mirror images."""
    plain = [[look.dhash for look in looks], [look.phash for look in looks]]
    mirrored = [[look.mirrored_dhash for look in looks], [look.mirrored_phash for look in looks]]
    return np.array(plain, np.uint64), np.array(mirrored, np.uint64)


def _find_close_pairs(
    plain: Hashes, mirrored: Hashes, groups: Indices, others: Hashes, other_groups: Indices
) -> Iterator[tuple[Indices, Indices]]:
    """All pairs that are alike and of two groups, in blocks, some pairs several times.

    Groups that are joined meanwhile are not compared any more from the next mask on.
    """
    hashes = (0, 1), (1, 0)
    for (this, that), mask, shown in itertools.product(hashes, _MASKS, (plain, mirrored)):
        one, other, ranges = _bucket_ranges(
            shown[this] & mask, groups, others[this] & mask, other_groups
        )
        left, right = shown[:, one], others[:, other]
        for place, rank in itertools.chain.from_iterable(itertools.starmap(_expand_ranges, ranges)):
            differ = left[this][place] ^ right[this][rank]
            met = np.bitwise_count(differ) <= MAX_DISTANCE
            if mask != _MASKS[0]:
                met &= differ != 0  # equal hashes have met at the first mask
            place, rank = place[met], rank[met]
            near = np.bitwise_count(left[that][place] ^ right[that][rank]) <= MAX_DISTANCE_SUM
            yield one[place[near]], other[rank[near]]


def _bucket_ranges(
    keys: Hashes, groups: Indices, other_keys: Hashes, other_groups: Indices
) -> tuple[Indices, Indices, list[tuple[Indices, Indices]]]:
    """Whom to compare with whom: all pairs of one key and two groups.

    Returns:
        photos and others, both sorted, and, for each of these photos, from which to which
        it meets the others, once for lower groups than its own, once for higher ones.
    """
    one, other = np.lexsort((groups, keys)), np.lexsort((other_groups, other_keys))
    ordered = other_keys[other]
    first = np.searchsorted(ordered, keys[one])
    last = np.searchsorted(ordered, keys[one], "right")
    shared = first < last
    one, first, last = one[shared], first[shared], last[shared]
    # a key and a group in one number
    count = 1 + max(groups.max(initial=0), other_groups.max(initial=0))
    own = first * count + groups[one]
    ranks = np.searchsorted(ordered, ordered) * count + other_groups[other]
    lower = first, np.searchsorted(ranks, own)
    higher = np.searchsorted(ranks, own, "right"), last
    return one, other, [lower, higher]


def _expand_ranges(first: Indices, last: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Each place of some ranges together with each number in its range, in blocks."""
    ends = np.cumsum(last - first)
    total, shift = int(ends[-1]) if len(ends) else 0, last - ends
    for start in range(0, total, _PAIRS_PER_BATCH):
        stop = min(start + _PAIRS_PER_BATCH, total)
        places = np.arange(np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop) + 1)
        begins = ends[places] - last[places] + first[places]
        place = np.repeat(places, ends[places].clip(max=stop) - begins.clip(min=start))
        yield place, np.arange(start, stop) + shift[place]


def _join_groups(leaders: Indices, one: Indices, other: Indices) -> None:
    """Make groups of some pairs one, led by their first photo."""
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
    rest = np.sort(coefficients[1:])  # the mean brightness says nothing
    return _pack_bits(coefficients > (rest[31] + rest[30]) // 2)


def _pack_bits(bits: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def _dct_matrix() -> npt.NDArray[np.int64]:
    """The eight lowest rows of a 32-point DCT-II, in 1/4096."""
    row, place = np.mgrid[:8, :32]
    waves = np.cos(np.pi * row * (2 * place + 1) / 64)
    return np.asarray(np.rint(4096 * waves), np.int64)


_DCT = _dct_matrix()
