"""The run: scan, cut, plan, pack, publish. Each unit leaves a durable marker, so a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pipeline import pool
from pipeline.folder import begin_work, check_folder, clear_dataset, finished_dataset, promise_of
from pipeline.official import listing_sha256 as partners_sha256
from pipeline.official import with_partners
from pipeline.options import Options, check_options, described, libraries
from pipeline.pack import pack_shard, save_plan
from pipeline.plan import Plan, make_plan
from pipeline.scan import Found, Scan, describe, matching, scan
from pipeline.similar import Look, looks_below
from pipeline.spill import load_spill, open_photo, write_spill
from shards import files, resize, writer
from shards.errors import TooManyRejects, UsageError, UsrganError
from shards.manifest import Manifest, Option, Photos, Resize, ShardEntry, Split

CHUNKS = 4096
"""At most so many spills: a shard is merged out of all of them."""
NO_FAULT = ("DUPLICATE", "SIMILAR", "EXCLUDED")
Advance = Callable[[int, str], None]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `prep-shards`: what to make, and how the work is done."""

    sources: tuple[Path, ...]
    out: Path
    options: Options
    workers: int
    """Processes; 0 works in this one."""
    exclude_like: tuple[Path, ...] = ()
    """Folders of test pictures that no photo may resemble."""
    lr_dir: Path | None = None
    """Folder of official LR images."""
    max_rejects: float = 0.05
    """Share of the photos that may be refused."""
    overwrite: bool = False


class Report(msgspec.Struct, frozen=True):
    """What a run has made; `prep-shards --json` prints it."""

    out: str
    dataset_sha256: str
    layout: str
    photos: dict[str, int]
    """found, train, val, rejected."""
    rejects: dict[str, int]
    """How many photos each reason left out."""
    pairs: dict[str, int]
    shards: int
    bytes: int
    already_done: bool


class Watch(msgspec.Struct, frozen=True):
    """How a run tells what it does and is asked to stop."""

    say: Callable[[str], None]
    progress: Callable[..., object]
    """`progress(title, total=, unit=, done=)`: a context that gives an `advance(steps, note)`."""
    stopping: Callable[[], bool]


def survey(job: Job) -> tuple[Job, Scan, set[str]]:
    """Check the options and look for photos; nothing is written.

    Returns:
        the job with digests of other folders it depends on, what lies there, and the names of the
        photos that a list or a folder makes validate.
    """
    check_options(job.options)
    found = scan(job.sources)
    if job.lr_dir:
        found = with_partners(found, job.lr_dir, job.options.scale)
        options = msgspec.structs.replace(job.options, lr_dir=partners_sha256(found))
        check_options(options)
        job = msgspec.structs.replace(job, options=options)
    by_folder = {photo.name for photo in found.photos if photo.val}
    if job.options.val_list:
        return job, found, matching(found, job.options.val_list)
    return job, found, by_folder


def prepare(job: Job, watch: Watch) -> Report:
    """Make the data set, or go on with it, or find it done.

    Raises:
        UsageError: the options cannot be, or the folder holds something else.
        TooManyRejects: more photos were refused than `max_rejects`.
        Stopped: on request; what is finished stays.
    """
    job, found, val_names = survey(job)
    watch.say(describe(found))
    check_folder(job.out)
    tests = looks_below(job.exclude_like)
    job = _with_tests(job, tests)
    with files.locked(job.out, holder="prep-shards"):
        if job.overwrite:
            clear_dataset(job.out)
        promise = promise_of(job.options, found)
        done = finished_dataset(job.out, promise)
        if done:
            files.remove(job.out / "_work")
            return _report(job, done, already_done=True)
        work = job.out / "_work"
        begin_work(work, promise)
        chunks = _cut(job, work, found.photos, watch)
        plan = make_plan(work, chunks, job.options, val_names=val_names, tests=tests)
        _write_rejects(job.out, plan)
        _check_rejects(job, found, plan)
        save_plan(work, plan)
        entries = _pack(job, plan, watch)
        manifest = writer.publish(job.out, _manifest(job, found, plan, promise, entries))
        files.remove(work)
    return _report(job, manifest, already_done=False)


def _with_tests(job: Job, tests: Sequence[tuple[str, Look]]) -> Job:
    """The job with the digest of its test pictures among its options."""
    if not tests:
        return job
    digest = hashlib.sha256(msgspec.json.encode(tests)).hexdigest()
    options = msgspec.structs.replace(job.options, exclude_like=digest)
    return msgspec.structs.replace(job, options=options)


def _cut(job: Job, work: Path, photos: Sequence[Found], watch: Watch) -> int:
    """Spill all chunks that are not yet; returns how many there are."""
    size = -(-len(photos) // CHUNKS)
    chunks = [photos[at : at + size] for at in range(0, len(photos), size)]
    crashed: frozenset[str] = frozenset()
    missing = [n for n in range(len(chunks)) if load_spill(work, n) is None]
    before = len(photos) - sum(len(chunks[number]) for number in missing)
    if before:
        watch.say(f"{before:,} photos were cut by an earlier run")
    for attempt in range(2):
        units = [(work, n, chunks[n], job.options, crashed) for n in missing]
        missing = []
        if not units:
            break
        with watch.progress("cut", total=len(photos), unit="photos", done=before) as advance:  # type: ignore[attr-defined]
            for ended in pool.run(write_spill, units, workers=job.workers, stopping=watch.stopping):
                if isinstance(ended, pool.Died):
                    missing.append(int(str(ended.unit[1])))
                else:
                    advance(len(chunks[ended.result]), "")
        if missing and attempt == 0:
            suspects = [photo for number in missing for photo in chunks[number]]
            crashed = _crashing(suspects, job, watch)
    if missing:
        name = chunks[missing[0]][0].name
        raise UsrganError(
            f"{name}: its process was killed again and again (out of memory?); use fewer --workers"
        )
    return len(chunks)


def _crashing(photos: Sequence[Found], job: Job, watch: Watch) -> frozenset[str]:
    """The photos that kill a process which does nothing but read them."""
    units = [(photo, job.options) for photo in photos]
    ended = list(pool.run(open_photo, units, workers=job.workers, stopping=watch.stopping))
    survived = {done.result for done in ended if isinstance(done, pool.Done)}
    return frozenset(photo.name for photo in photos if photo.name not in survived)


def _pack(job: Job, plan: Plan, watch: Watch) -> dict[str, ShardEntry]:
    """Write the shards that are not there yet."""
    entries: dict[str, ShardEntry] = {}
    for shard in plan.shards:
        if entry := writer.finished_shard(job.out, shard.name):
            entries[shard.name] = entry
    units = [(job.out, shard, job.options) for shard in plan.shards if shard.name not in entries]
    total = len(plan.shards)
    with watch.progress("pack", total=total, unit="shards", done=len(entries)) as advance:  # type: ignore[attr-defined]
        for ended in pool.run(pack_shard, units, workers=job.workers, stopping=watch.stopping):
            if isinstance(ended, pool.Died):
                raise UsrganError(
                    "a process that writes shards was killed again and again"
                    " (out of memory?); use fewer --workers or --samples-per-shard"
                )
            entries[ended.result.name] = ended.result
            advance(1, "")
    return entries


def _write_rejects(out: Path, plan: Plan) -> None:
    lines = b"".join(msgspec.json.encode(reject) + b"\n" for reject in plan.rejects)
    files.write_file(out / "rejects.jsonl", lines)


def _check_rejects(job: Job, found: Scan, plan: Plan) -> None:
    """Copies and the like are left out too, but they are no fault of a photo."""
    refused = [reject for reject in plan.rejects if reject.code not in NO_FAULT]
    total = len(found.photos)
    if refused and len(refused) > job.max_rejects * total:
        first = refused[0]
        raise TooManyRejects(
            f"{job.out / 'rejects.jsonl'}: {len(refused)} of {total} photos were refused"
            f" (first: {first.src} {first.reason}), more than --max-rejects {job.max_rejects:.3g} allows;"
            f" repair them or run again with --max-rejects {-(-100 * len(refused) // total)}%"
        )
    if not any(shard.split == "train" for shard in plan.shards):
        raise UsageError(f"--out {job.out}: no photo is left to train on; see rejects.jsonl there")


def _manifest(
    job: Job, found: Scan, plan: Plan, promise: dict[str, Option], entries: dict[str, ShardEntry]
) -> Manifest:
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
        resize=Resize(job.options.kernel, *resize.implementation(job.options.kernel)),
        options=described(job.options),
        libraries=libraries(),
        photos=Photos(
            layout=found.layout,
            found=len(found.photos),
            rejected=len(plan.rejects),
            train=used["train"],
            val=used["val"],
            listing_sha256=str(promise["photos"]),
        ),
        splits=splits,
    )


def _report(job: Job, manifest: Manifest, *, already_done: bool) -> Report:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    photos = manifest.photos
    return Report(
        out=str(job.out),
        dataset_sha256=manifest.dataset_sha256,
        layout=photos.layout,
        photos={
            "found": photos.found,
            "train": photos.train,
            "val": photos.val,
            "rejected": photos.rejected,
        },
        rejects=_counted(job.out),
        pairs={name: split.samples for name, split in manifest.splits.items()},
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        already_done=already_done,
    )


def _counted(out: Path) -> dict[str, int]:
    path = out / "rejects.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return dict(sorted(Counter(json.loads(line)["code"] for line in lines).items()))
