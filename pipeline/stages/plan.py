"""Plan of the whole data set: split, order and shards, from the outcomes of all photos."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.options import Options
from pipeline.patches.spill import ROW, Outcome, Rows, load_spill
from pipeline.photos.near_duplicates import PerceptualHash, find_resembling, group_near_duplicates
from shards.errors import UsrganError
from shards.writer import shard_name

PLACED_ROW = np.dtype(
    [("chunk", "<u4"), ("source", "<u4"), *((n, ROW[n]) for n in ROW.names or ())]
)
"""A row of a spill with its chunk and the index of its photo in `Plan.photos`."""


class Source(msgspec.Struct, frozen=True):
    """A photo of the data set."""

    name: str
    sha256: str
    pixels: str
    split: str
    blockiness: float = 1.0
    pre_scale: float = 1.0


class Reject(msgspec.Struct, frozen=True):
    """A photo that is not used: one line of `rejects.jsonl`."""

    src: str
    code: str
    reason: str


class Shard(msgspec.Struct, frozen=True):
    """One shard: rows `first` to `last` of the plan; the key of a sample is its row number."""

    split: str
    name: str
    first: int
    last: int


class Plan(NamedTuple):
    """Contents of all shards."""

    photos: list[Source]
    rejects: list[Reject]
    rows: Rows
    """PLACED_ROW [N] in key order: train, then val, each sorted by rank."""
    shards: list[Shard]


def make_plan(
    work: Path,
    chunks: int,
    options: Options,
    *,
    val_names: set[str],
    tests: Sequence[tuple[str, PerceptualHash]],
) -> Plan:
    """Join all spills: drop copies and near-duplicates, split by photo, sort by rank, assign to shards.

    Args:
        work: the scratch folder with the spills of all chunks.
        chunks: number of chunks.
        options: seed, fractions and sizes.
        val_names: validation photos by list or folder; if empty, `val_fraction` applies.
        tests: names and hashes of the test images that no photo may resemble.
    """
    spills = [_load_outcomes(work, chunk) for chunk in range(chunks)]
    outcomes = [outcome for _, chunk_outcomes in spills for outcome in chunk_outcomes]
    used, rejects = _drop_copies(outcomes, val_names)
    used, excluded = _drop_test_images(used, tests)
    groups = group_near_duplicates(_collect_hashes(used))
    similar: list[Reject] = []
    if options.similar == "drop":
        used, similar = _drop_near_duplicates(used, groups, val_names)
        groups = []
    rejects += excluded + similar
    splits = _split_photos(used, groups, options, val_names)
    photos = [
        Source(p.name, p.sha256, p.pixels, splits[p.name], p.blockiness, p.pre_scale) for p in used
    ]
    rows = _place_rows(spills, photos)
    pixels = np.array([photo.pixels for photo in used], np.str_)
    is_val = np.array([photo.split == "val" for photo in photos], np.bool_)
    rows = rows[_sort_rows(rows, pixels, is_val)]
    train = int(np.count_nonzero(~is_val[rows["source"]]))
    shards = _assign_shards("train", 0, train, options) + _assign_shards(
        "val", train, len(rows), options
    )
    return Plan(photos, sorted(rejects, key=lambda reject: reject.src), rows, shards)


def _load_outcomes(work: Path, chunk: int) -> tuple[Rows, list[Outcome]]:
    spill = load_spill(work, chunk)
    if spill is None:
        raise UsrganError(
            f"{work}: the spill of chunk {chunk} is missing; run the same command again"
        )
    return spill


def _drop_copies(
    outcomes: Sequence[Outcome], val_names: set[str]
) -> tuple[list[Outcome], list[Reject]]:
    """Keep one photo of each set of pixel-equal copies, preferably a validation photo."""
    unique: dict[str, Outcome] = {}
    rejects = [Reject(o.name, o.code, o.reason) for o in outcomes if o.code]
    for outcome in sorted(outcomes, key=lambda o: (o.name not in val_names, o.name)):
        if outcome.code:
            continue
        first = unique.setdefault(outcome.pixels, outcome)
        if first is not outcome:
            rejects.append(
                Reject(outcome.name, "DUPLICATE", f"has the same pixels as {first.name}")
            )
    return sorted(unique.values(), key=lambda outcome: outcome.name), rejects


def _drop_test_images(
    photos: Sequence[Outcome], tests: Sequence[tuple[str, PerceptualHash]]
) -> tuple[list[Outcome], list[Reject]]:
    """Drop photos that resemble a test image; training on them would inflate the scores."""
    resembling = find_resembling(_collect_hashes(photos), [test for _, test in tests])
    rejects = [
        Reject(photos[number].name, "EXCLUDED", f"resembles the test image {tests[test][0]}")
        for number, test in resembling.items()
    ]
    return [photo for number, photo in enumerate(photos) if number not in resembling], rejects


def _drop_near_duplicates(
    photos: Sequence[Outcome], groups: Sequence[Sequence[int]], val_names: set[str]
) -> tuple[list[Outcome], list[Reject]]:
    """Keep the largest photo of each group of near-duplicates; of a group in validation, only its val photos."""
    rejects = []
    for group in groups:
        members = sorted((photos[n] for n in group), key=lambda photo: (-photo.area, photo.name))
        used = [photo for photo in members if photo.name in val_names] or members[:1]
        rejects += [
            Reject(photo.name, "SIMILAR", f"is a near-duplicate of {used[0].name}")
            for photo in members
            if photo not in used
        ]
    dropped = {reject.src for reject in rejects}
    return [photo for photo in photos if photo.name not in dropped], rejects


def _split_photos(
    photos: Sequence[Outcome],
    groups: Sequence[Sequence[int]],
    options: Options,
    val_names: set[str],
) -> dict[str, str]:
    """Return `train` or `val` for each photo name: by name, or `val_fraction` of the photos by random rank.

    A group of near-duplicates stays in one split.
    """
    leader_of = {number: min(group) for group in groups for number in group}
    leaders = [leader_of.get(number, number) for number in range(len(photos))]
    chosen = {leaders[n] for n, photo in enumerate(photos) if photo.name in val_names}
    sizes = Counter(leaders)
    ranked = sorted(sizes, key=lambda leader: _val_rank(photos[leader], options))
    if not val_names and options.val_fraction and len(ranked) > 1:
        target, count = max(1, round(options.val_fraction * len(photos))), 0
        for leader in ranked[:-1]:
            if count >= target:
                break
            chosen.add(leader)
            count += sizes[leader]
    return {
        photo.name: "val" if leader in chosen else "train"
        for photo, leader in zip(photos, leaders, strict=True)
    }


def _collect_hashes(photos: Sequence[Outcome]) -> list[PerceptualHash]:
    hashes = [photo.perceptual_hash for photo in photos if photo.perceptual_hash is not None]
    assert len(hashes) == len(photos)
    return hashes


def _val_rank(photo: Outcome, options: Options) -> bytes:
    return hashlib.blake2b(f"usrgan val {options.seed} {photo.pixels}".encode()).digest()


def _place_rows(spills: Sequence[tuple[Rows, list[Outcome]]], photos: Sequence[Source]) -> Rows:
    """Return the rows of all used photos, each with its chunk and the index of its photo."""
    index = {photo.name: number for number, photo in enumerate(photos)}
    parts = []
    for chunk, (rows, outcomes) in enumerate(spills):
        sources = np.array([index.get(outcome.name, -1) for outcome in outcomes], np.int64)
        source = sources[rows["photo"]] if len(rows) else np.zeros(0, np.int64)
        part = np.zeros(len(rows), PLACED_ROW)
        for name in ROW.names or ():
            part[name] = rows[name]
        part["chunk"] = chunk
        part["source"] = source.clip(min=0)
        parts.append(part[source >= 0])
    return np.concatenate(parts) if parts else np.zeros(0, PLACED_ROW)


def _sort_rows(
    rows: Rows, pixels: npt.NDArray[np.str_], is_val: npt.NDArray[np.bool_]
) -> npt.NDArray[np.intp]:
    """Return the order of the rows: train before val, then rank; equal ranks by photo and position."""
    source = rows["source"]
    by_pixels = np.argsort(np.argsort(pixels))
    return np.lexsort((rows["x"], rows["y"], by_pixels[source], rows["rank"], is_val[source]))


def _assign_shards(split: str, first: int, last: int, options: Options) -> list[Shard]:
    size = options.samples_per_shard
    return [
        Shard(split, shard_name(split, number), start, min(start + size, last))
        for number, start in enumerate(range(first, last, size))
    ]
