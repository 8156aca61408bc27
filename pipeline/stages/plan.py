"""Split, order and shards of the whole data set, from what became of each photo."""

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
"""A row of a spill with its chunk, and its photo's place in `Plan.photos`."""


class Source(msgspec.Struct, frozen=True):
    """A photo of the data set."""

    name: str
    sha256: str
    pixels: str
    split: str
    blockiness: float = 1.0
    pre_scale: float = 1.0


class Reject(msgspec.Struct, frozen=True):
    """A photo that was left out: one line of `rejects.jsonl`."""

    src: str
    code: str
    reason: str


class Shard(msgspec.Struct, frozen=True):
    """Rows `first` up to `last` of the plan, whose keys are their row numbers."""

    split: str
    name: str
    first: int
    last: int


class Plan(NamedTuple):
    """Content of all shards."""

    photos: list[Source]
    rejects: list[Reject]
    rows: Rows
    """PLACED [N], in key order: train, then val, each by rank."""
    shards: list[Shard]


def make_plan(
    work: Path,
    chunks: int,
    options: Options,
    *,
    val_names: set[str],
    tests: Sequence[tuple[str, PerceptualHash]],
) -> Plan:
    """Join all spills: drop copies, split by photo, order by rank, cut into shards.

    Args:
        work: the scratch folder, with every chunk spilled.
        chunks: how many there are.
        options: seed, shares and sizes.
        val_names: the photos that a list or a folder makes validate; if none, a share does.
        tests: names and looks of the pictures that no photo may resemble.
    """
    spills = [_load_outcomes(work, chunk) for chunk in range(chunks)]
    outcomes = [outcome for _, found in spills for outcome in found]
    kept, rejects = _drop_copies(outcomes, val_names)
    kept, excluded = _drop_test_pictures(kept, tests)
    alike = group_near_duplicates(_collect_hashes(kept))
    similar: list[Reject] = []
    if options.similar == "drop":
        kept, similar = _drop_near_duplicates(kept, alike, val_names)
        alike = []
    rejects += excluded + similar
    splits = _split_photos(kept, alike, options, val_names)
    photos = [
        Source(p.name, p.sha256, p.pixels, splits[p.name], p.blockiness, p.pre_scale) for p in kept
    ]
    rows = _place_rows(spills, photos)
    pixels = np.array([photo.pixels for photo in kept], np.str_)
    held = np.array([photo.split == "val" for photo in photos], np.bool_)
    rows = rows[_sort_rows(rows, pixels, held)]
    train = int(np.count_nonzero(~held[rows["source"]]))
    shards = _assign_shards("train", 0, train, options) + _assign_shards(
        "val", train, len(rows), options
    )
    return Plan(photos, sorted(rejects, key=lambda reject: reject.src), rows, shards)


def _load_outcomes(work: Path, chunk: int) -> tuple[Rows, list[Outcome]]:
    spill = load_spill(work, chunk)
    if spill is None:
        raise UsrganError(f"{work}: chunk {chunk} has vanished; run the same command again")
    return spill


def _drop_copies(
    outcomes: Sequence[Outcome], val_names: set[str]
) -> tuple[list[Outcome], list[Reject]]:
    """One photo of each set of pixel-equal copies; one that validates is kept before others."""
    kept: dict[str, Outcome] = {}
    rejects = [Reject(o.name, o.code, o.reason) for o in outcomes if o.code]
    for outcome in sorted(outcomes, key=lambda o: (o.name not in val_names, o.name)):
        if outcome.code:
            continue
        first = kept.setdefault(outcome.pixels, outcome)
        if first is not outcome:
            rejects.append(
                Reject(outcome.name, "DUPLICATE", f"has the same pixels as {first.name}")
            )
    return sorted(kept.values(), key=lambda outcome: outcome.name), rejects


def _drop_test_pictures(
    photos: Sequence[Outcome], tests: Sequence[tuple[str, PerceptualHash]]
) -> tuple[list[Outcome], list[Reject]]:
    """The photos that resemble none of the test pictures: those would make the scores lie."""
    like = find_resembling(_collect_hashes(photos), [look for _, look in tests])
    rejects = [
        Reject(photos[number].name, "EXCLUDED", f"resembles the test picture {tests[other][0]}")
        for number, other in like.items()
    ]
    return [photo for number, photo in enumerate(photos) if number not in like], rejects


def _drop_near_duplicates(
    photos: Sequence[Outcome], alike: Sequence[Sequence[int]], val_names: set[str]
) -> tuple[list[Outcome], list[Reject]]:
    """The largest of each group of photos that look alike; of a group that validates, only those."""
    rejects = []
    for group in alike:
        members = sorted((photos[n] for n in group), key=lambda photo: (-photo.area, photo.name))
        kept = [photo for photo in members if photo.name in val_names] or members[:1]
        rejects += [
            Reject(photo.name, "SIMILAR", f"shows the same as {kept[0].name}")
            for photo in members
            if photo not in kept
        ]
    dropped = {reject.src for reject in rejects}
    return [photo for photo in photos if photo.name not in dropped], rejects


def _split_photos(
    photos: Sequence[Outcome],
    alike: Sequence[Sequence[int]],
    options: Options,
    val_names: set[str],
) -> dict[str, str]:
    """`train` or `val` for each photo, by name, or the share with the lowest digests.

    Photos that look alike go together.
    """
    together = {number: min(group) for group in alike for number in group}
    leaders = [together.get(number, number) for number in range(len(photos))]
    chosen = {leaders[n] for n, photo in enumerate(photos) if photo.name in val_names}
    sizes = Counter(leaders)
    units = sorted(sizes, key=lambda leader: _draw_rank(photos[leader], options))
    if not val_names and options.val_fraction and len(units) > 1:
        wanted, count = max(1, round(options.val_fraction * len(photos))), 0
        for leader in units[:-1]:
            if count >= wanted:
                break
            chosen.add(leader)
            count += sizes[leader]
    return {
        photo.name: "val" if leader in chosen else "train"
        for photo, leader in zip(photos, leaders, strict=True)
    }


def _collect_hashes(photos: Sequence[Outcome]) -> list[PerceptualHash]:
    looks = [photo.look for photo in photos if photo.look is not None]
    assert len(looks) == len(photos)
    return looks


def _draw_rank(photo: Outcome, options: Options) -> bytes:
    return hashlib.blake2b(f"usrgan val {options.seed} {photo.pixels}".encode()).digest()


def _place_rows(spills: Sequence[tuple[Rows, list[Outcome]]], photos: Sequence[Source]) -> Rows:
    """The rows of all kept photos, each with its chunk and source."""
    place = {photo.name: number for number, photo in enumerate(photos)}
    parts = []
    for chunk, (rows, outcomes) in enumerate(spills):
        sources = np.array([place.get(outcome.name, -1) for outcome in outcomes], np.int64)
        source = sources[rows["photo"]] if len(rows) else np.zeros(0, np.int64)
        part = np.zeros(len(rows), PLACED_ROW)
        for name in ROW.names or ():
            part[name] = rows[name]
        part["chunk"] = chunk
        part["source"] = source.clip(min=0)
        parts.append(part[source >= 0])
    return np.concatenate(parts) if parts else np.zeros(0, PLACED_ROW)


def _sort_rows(
    rows: Rows, pixels: npt.NDArray[np.str_], held: npt.NDArray[np.bool_]
) -> npt.NDArray[np.intp]:
    """Train before val, by rank; equal ranks by photo and position."""
    source = rows["source"]
    by_pixels = np.argsort(np.argsort(pixels))
    return np.lexsort((rows["x"], rows["y"], by_pixels[source], rows["rank"], held[source]))


def _assign_shards(split: str, first: int, last: int, options: Options) -> list[Shard]:
    size = options.samples_per_shard
    return [
        Shard(split, shard_name(split, number), start, min(start + size, last))
        for number, start in enumerate(range(first, last, size))
    ]
