"""Rejects and manifest of a data set, and the result of a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec

from pipeline.job import Job
from pipeline.options import describe_options, library_versions
from pipeline.photos.scan import Scan
from pipeline.stages.plan import Plan
from shards.errors import TooManyRejects, UsrganError
from shards.format.manifest import Manifest, Option, Photos, Resize, ShardEntry, Split
from shards.images import resize
from shards.io import atomic, remote
from shards.io.remote import Location
from shards.messages import format_count

EXPECTED_REJECTS = ("DUPLICATE", "SIMILAR", "EXCLUDED")
"""Rejection codes that mean no fault of the photo."""


class Report(msgspec.Struct, frozen=True):
    """Result of a run, printed by `prep-shards --json`."""

    out: str
    dataset_sha256: str
    layout: str
    photos: dict[str, int]
    """Keys: found, train, val, rejected."""
    rejects: dict[str, int]
    """Number of rejected photos per code."""
    pairs: dict[str, int]
    shards: int
    bytes: int
    already_done: bool


def write_rejects(out: Path, plan: Plan) -> None:
    """Write `rejects.jsonl`: one line per rejected photo."""
    lines = b"".join(msgspec.json.encode(reject) + b"\n" for reject in plan.rejects)
    atomic.write_file(out / "rejects.jsonl", lines)


def check_rejects(job: Job, scan: Scan, plan: Plan) -> None:
    """Check the share of faulty photos and that training photos remain; duplicates are no fault.

    Raises:
        TooManyRejects: more photos were rejected than `max_rejects`.
        UsrganError: no patch remains for training.
    """
    faulty = [reject for reject in plan.rejects if reject.code not in EXPECTED_REJECTS]
    total = len(scan.photos)
    if faulty and len(faulty) > job.max_rejects * total:
        first = faulty[0]
        raise TooManyRejects(
            f"{job.out / 'rejects.jsonl'}: {len(faulty)} of {format_count(total, 'photo')} rejected"
            f" (first: {first.src} {first.reason}), more than --max-rejects {job.max_rejects:.3g} allows;"
            f" repair them or run again with --max-rejects {-(-100 * len(faulty) // total)}%"
        )
    if not any(shard.split == "train" for shard in plan.shards):
        val = sum(photo.split == "val" for photo in plan.photos)
        counts = Counter(reject.code for reject in plan.rejects)
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
        if len(plan.photos) > val:
            raise UsrganError(
                f"--src: no patch of {format_count(total, 'photo')} remains for training;"
                " lower --min-detail or raise --keep-flat"
            )
        raise UsrganError(
            f"{job.out / 'rejects.jsonl'}: none of {format_count(total, 'photo')} remains for training"
            f" ({reasons or 'none rejected'}{f', {val} for validation' if val else ''});"
            " see the reasons in this file"
        )


def build_manifest(
    job: Job, scan: Scan, plan: Plan, spec: dict[str, Option], entries: dict[str, ShardEntry]
) -> Manifest:
    """Return the manifest of a data set, without its digest."""
    splits = {}
    for name in ("train", "val"):
        shards = tuple(entries[shard.name] for shard in plan.shards if shard.split == name)
        splits[name] = Split(sum(shard.samples for shard in shards), shards)
    used = Counter(photo.split for photo in plan.photos)
    return Manifest(
        scale=job.options.scale,
        hr_size=job.options.stored_size,
        crop_size=job.options.hr_size if job.options.store_larger else 0,
        codec=job.options.codec,
        resize=Resize(job.options.kernel, *resize.describe_implementation(job.options.kernel)),
        options=describe_options(job.options),
        libraries=library_versions(),
        photos=Photos(
            layout=scan.layout,
            found=len(scan.photos),
            rejected=len(plan.rejects),
            train=used["train"],
            val=used["val"],
            listing_sha256=str(spec["photos"]),
        ),
        splits=splits,
    )


def build_report(job: Job, manifest: Manifest, *, already_done: bool) -> Report:
    """Return the result of a run, from its manifest and `rejects.jsonl`."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    photos = manifest.photos
    return Report(
        out=job.url or str(job.out),
        dataset_sha256=manifest.dataset_sha256,
        layout=photos.layout,
        photos={
            "found": photos.found,
            "train": photos.train,
            "val": photos.val,
            "rejected": photos.rejected,
        },
        rejects=_count_reasons(job.url if already_done and job.url else job.out),
        pairs={name: split.samples for name, split in manifest.splits.items()},
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        already_done=already_done,
    )


def _count_reasons(out: Location) -> dict[str, int]:
    """Return the number of rejected photos per code; empty if the list is missing."""
    name = "rejects.jsonl"
    try:
        content = (
            (out / name).read_bytes()
            if isinstance(out, Path)
            else remote.read_file(remote.child(out, name))
        )
    except FileNotFoundError:
        return {}
    return dict(sorted(Counter(json.loads(line)["code"] for line in content.splitlines()).items()))
