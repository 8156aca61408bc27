from __future__ import annotations

import itertools
import json
import os
import time

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.options import Options
from pipeline.patches.spill import Outcome
from pipeline.photos.accept import compute_luma
from pipeline.photos.near_duplicates import (
    PerceptualHash,
    _join_groups,
    find_resembling,
    group_near_duplicates,
    hash_folder,
    hash_photo,
    is_near_duplicate,
)
from pipeline.stages.plan import _split_photos
from shards.errors import UsageError
from shards.format import png
from shards.read.dataset import open_dataset
from tests.pipeline.support import SMALL, make, make_photo, prep


def half(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


CHANGES = {
    "half": half,
    "recompressed": lambda image: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality=30)),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "brighter": lambda image: (255 * (image / 255) ** 0.85).astype(np.uint8),
    "mirrored and half": lambda image: half(np.ascontiguousarray(image[:, ::-1])),
}
PHOTOS = [make_photo(seed) for seed in range(30)]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_duplicates(change):
    similar = [
        is_near_duplicate(
            hash_photo(compute_luma(CHANGES[change](photo))), hash_photo(compute_luma(photo))
        )
        for photo in PHOTOS
    ]
    assert sum(similar) >= 29


def test_different_photos_are_no_near_duplicates():
    hashes = [hash_photo(compute_luma(photo)) for photo in PHOTOS]
    assert not any(is_near_duplicate(a, b) for a, b in itertools.combinations(hashes, 2))


def test_the_hashes_follow_their_definitions():
    image = PHOTOS[3][:250]  # small enough to skip the halving
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    dhash = int(
        "".join(str(int(small[r, c + 1] > small[r, c])) for r in range(8) for c in range(8)), 2
    )
    assert hash_photo(luma).dhash == dhash
    fine = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(float)
    spectrum = cv2.dct(fine)[:8, :8]
    spectrum[0] *= np.sqrt(2)  # cv2's DCT is orthonormal, unlike ours
    spectrum[:, 0] *= np.sqrt(2)
    bits = (spectrum > np.median(spectrum.flatten()[1:])).flatten()
    phash = int("".join(str(int(bit)) for bit in bits), 2)
    assert (hash_photo(luma).phash ^ phash).bit_count() <= 1


def flipped(
    photo_hash: PerceptualHash, bits: tuple[int, int], rng: np.random.Generator
) -> PerceptualHash:
    """Flip some bits of the hashes, other ones in the mirror image."""
    flips = [
        sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)) for count in bits * 2
    ]
    values = (
        photo_hash.dhash,
        photo_hash.phash,
        photo_hash.mirrored_dhash,
        photo_hash.mirrored_phash,
    )
    return PerceptualHash(*(value ^ flip for value, flip in zip(values, flips, strict=True)))


def mirrored(photo_hash: PerceptualHash) -> PerceptualHash:
    return PerceptualHash(
        photo_hash.mirrored_dhash, photo_hash.mirrored_phash, photo_hash.dhash, photo_hash.phash
    )


def make_hashes(seed: int, count: int) -> list[PerceptualHash]:
    """Return unrelated hashes, plain ones, and copies of copies: equal, close, just too far, mirrored."""
    rng = np.random.default_rng(seed)
    hashes: list[PerceptualHash] = []
    while len(hashes) < count:
        values = rng.integers(0, 2**64, 4, dtype=np.uint64)
        if rng.random() < 0.3:
            values[::2] &= ~np.uint64(0xFFFF << int(rng.integers(0, 49)))
        photo_hash = PerceptualHash(*map(int, values))
        for _ in range(int(rng.geometric(0.2)) - 1):
            hashes.append(photo_hash)
            few, many = int(rng.integers(0, 5)), int(rng.integers(0, 12))
            photo_hash = flipped(
                hashes[-1], (few, many) if rng.random() < 0.5 else (many, few), rng
            )
            photo_hash = mirrored(photo_hash) if rng.random() < 0.3 else photo_hash
        hashes.append(photo_hash)
    return [hashes[number] for number in rng.permutation(len(hashes))]


def differ(one: tuple[int, int], other: tuple[int, int]) -> bool:
    bits = sorted((a ^ b).bit_count() for a, b in zip(one, other, strict=True))
    return bits[0] > 3 or bits[1] > 10


def both(photo_hash: PerceptualHash) -> list[tuple[int, int]]:
    return [
        (photo_hash.dhash, photo_hash.phash),
        (photo_hash.mirrored_dhash, photo_hash.mirrored_phash),
    ]


def groups_of_all_pairs(hashes: list[PerceptualHash]) -> list[list[int]]:
    group = list(range(len(hashes)))
    for (one, a), (other, b) in itertools.permutations(enumerate(hashes), 2):
        if not all(differ(shown, both(b)[0]) for shown in both(a)):
            former = max(group[one], group[other])
            group = [min(group[one], group[other]) if g == former else g for g in group]
    groups = [[n for n, g in enumerate(group) if g == leader] for leader in sorted(set(group))]
    return [members for members in groups if len(members) > 1]


def resembling_of_all_pairs(
    hashes: list[PerceptualHash], others: list[PerceptualHash]
) -> dict[int, int]:
    def turn(photo_hash: PerceptualHash, other: PerceptualHash) -> tuple[int, int, int]:
        """Return the first shared quarter of two hashes: which hash, which quarter, mirrored or not."""
        return min(
            (which, quarter, side)
            for which, quarter, side in itertools.product(range(2), range(4), range(2))
            if (both(photo_hash)[side][which] ^ both(other)[0][which]) >> 16 * quarter & 0xFFFF == 0
        )

    matches = {}
    for number, photo_hash in enumerate(hashes):
        like = [
            (*turn(photo_hash, other), which)
            for which, other in enumerate(others)
            if not all(differ(shown, both(other)[0]) for shown in both(photo_hash))
        ]
        if like:
            matches[number] = min(like)[-1]
    return matches


@pytest.mark.parametrize("seed", range(12))
def test_near_duplicates_equal_those_of_an_all_pairs_search(seed, monkeypatch):
    hashes = make_hashes(seed, 120)
    photos, tests = hashes[:80], hashes[60:]
    grouped, like = groups_of_all_pairs(hashes), resembling_of_all_pairs(photos, tests)
    assert any(len(group) > 2 for group in grouped)
    assert len(set(like.values())) > 5
    for at_once in (1, 7, 1 << 18):
        monkeypatch.setattr("pipeline.photos.near_duplicates._PAIRS_PER_BATCH", at_once)
        assert group_near_duplicates(hashes) == grouped, at_once
        assert find_resembling(photos, tests) == like, at_once


def test_many_pairs_are_joined_at_once():
    leaders = np.arange(100)
    one, other = np.random.default_rng(0).integers(0, 50, (2, 40)) * 2
    _join_groups(leaders, one, other)
    assert np.array_equal(leaders[one], leaders[other])
    assert np.array_equal(leaders[leaders], leaders)
    untouched = np.setdiff1d(np.arange(100), np.concatenate([one, other]))
    assert np.array_equal(leaders[untouched], untouched)


def test_an_empty_list_has_no_near_duplicates():
    hashes = make_hashes(0, 3)
    assert group_near_duplicates([]) == []
    assert find_resembling(hashes, []) == find_resembling([], hashes) == {}


def test_images_with_plain_skies_are_fast():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, (20_000, 4), dtype=np.uint64)
    values[:6000, ::2] &= ~np.uint64(0xFFFF)  # two rows of eight bits
    hashes = [PerceptualHash(*map(int, row)) for row in values]
    start = time.process_time()
    assert group_near_duplicates(hashes) == []
    assert len(find_resembling(hashes, hashes[:2000])) == 2000
    assert time.process_time() - start < 5  # an all-pairs search took a minute


def test_masks_find_every_close_pair():
    rng = np.random.default_rng(0)
    base = [PerceptualHash(*(int(v) for v in rng.integers(0, 2**63, 4))) for _ in range(200)]
    for bits in range(4):
        flips = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
        moved = [
            PerceptualHash(b.dhash ^ flips, b.phash, b.mirrored_dhash, b.mirrored_phash)
            for b in base
        ]
        assert find_resembling(moved, base) == {n: n for n in range(200)}


def test_groups_join_through_a_third_photo():
    far = 0xAAAAAAAAAAAAAAAA
    pairs = [(0, 0), (0b111, 0), (0b111111, 0b111), (1 << 60, (1 << 40) - 1)]
    a, b, c, d = (PerceptualHash(dhash, phash, far, far) for dhash, phash in pairs)
    assert is_near_duplicate(a, b)
    assert is_near_duplicate(b, c)
    assert sorted(map(sorted, group_near_duplicates([a, b, c, d]))) == [[0, 1, 2]]


@pytest.fixture
def with_copies(photos):
    """Add copies to the five photos: one in half the size and one mirrored."""
    image = make_photo(0, height=260, width=300)
    (photos / "a-half.png").write_bytes(png.encode_rgb(half(image)))
    (photos / "a-mirrored.png").write_bytes(png.encode_rgb(np.ascontiguousarray(image[:, ::-1])))
    return photos


def sources(folder, split: str) -> set[str]:
    reader = open_dataset(folder).split(split)
    return {reader[position].info.src for position in range(len(reader))}


def test_the_largest_of_near_duplicates_is_used(with_copies, tmp_path):
    report = make(with_copies, tmp_path / "out")
    assert report["rejects"] == {"SIMILAR": 2}
    used = sources(tmp_path / "out", "train") | sources(tmp_path / "out", "val")
    assert {"a.png", "a-half.png", "a-mirrored.png"} & used == {"a-mirrored.png"} or "a.png" in used
    assert "a-half.png" not in used


@pytest.mark.parametrize("seed", range(6))
def test_near_duplicates_stay_in_one_split(with_copies, tmp_path, seed):
    make(
        with_copies, tmp_path / "out", "--similar", "keep", "--seed", seed, "--val-fraction", "40%"
    )
    group = {"a.png", "a-half.png", "a-mirrored.png"}
    train, val = (sources(tmp_path / "out", name) for name in ("train", "val"))
    assert group <= train or group <= val
    assert len(train | val) == 7


def test_near_duplicates_of_a_validation_photo_are_not_training_photos(with_copies, tmp_path):
    (tmp_path / "list").write_text("a-half\n")
    make(with_copies, tmp_path / "out", "--val-list", tmp_path / "list")
    assert sources(tmp_path / "out", "val") == {"a-half.png"}
    assert not {"a.png", "a-mirrored.png"} & sources(tmp_path / "out", "train")


def test_photos_that_resemble_a_test_image_are_rejected(photos, tmp_path):
    (tmp_path / "Set5/HR").mkdir(parents=True)
    copy = half(make_photo(1, height=297, width=353))
    (tmp_path / "Set5/HR/bird.png").write_bytes(png.encode_rgb(copy))
    report = make(photos, tmp_path / "out", "--exclude-like", tmp_path / "Set5")
    assert report["rejects"] == {"EXCLUDED": 1}
    (line,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["src"] == "b.png"
    assert "Set5/HR/bird.png" in json.loads(line)["reason"]
    other = prep("--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0, code=2)
    assert "exclude-like" in other.stderr


def test_the_name_of_a_test_image_may_be_any_bytes(photos, tmp_path):
    (tmp_path / "test").mkdir()
    content = (photos / "b.png").read_bytes()
    (tmp_path / "test" / os.fsdecode(b"caf\xe9.png")).write_bytes(content)
    report = make(photos, tmp_path / "out", "--exclude-like", tmp_path / "test")
    assert report["rejects"] == {"EXCLUDED": 1}
    assert "test/caf%E9.png" in (tmp_path / "out/rejects.jsonl").read_text()


def test_links_to_test_images_are_followed_but_no_loop(photos, tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/Set5").symlink_to(photos)
    (photos / "again").symlink_to(tmp_path / "test")
    names = [name for name, _ in hash_folder([tmp_path / "test"])]
    assert names == [
        f"test/Set5/{name}" for name in ("a.png", "b.png", "d.jpg", "e.webp", "more/c.png")
    ]


def test_a_test_set_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="has no images"):
        hash_folder([tmp_path])
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"x\.png: is empty"):
        hash_folder([tmp_path])


def test_the_split_of_many_photos_is_fast():
    photos = [Outcome(str(number), pixels=str(number)) for number in range(60_000)]
    start = time.process_time()
    splits = _split_photos(photos, [[5, 7, 9]], Options(val_fraction=0.5), set())
    assert time.process_time() - start < 5  # recounting every group took 20 s
    assert abs(sum(split == "val" for split in splits.values()) - 30_000) <= 2
    assert splits["5"] == splits["7"] == splits["9"]
