"""The run: scan, cut, plan, pack, publish. Each task leaves a durable marker, so that a killed run resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.execution.engines import RunTasks, open_engine
from pipeline.execution.pool import Crashed
from pipeline.job import Job, RunTerminal
from pipeline.options import check_options
from pipeline.photos.near_duplicates import PerceptualHash, hash_folder
from pipeline.photos.official import lr_listing_sha256 as partners_sha256
from pipeline.photos.official import pair_with_lr
from pipeline.photos.scan import Scan, describe_layout, find_changed, match_names, scan_sources
from pipeline.stages import output_folder, repair, tasks, upload
from pipeline.stages.cut import cut_photos
from pipeline.stages.pack import save_plan
from pipeline.stages.plan import Plan, make_plan
from pipeline.stages.report import (
    Report,
    build_manifest,
    build_report,
    check_rejects,
    write_rejects,
)
from shards import writer
from shards.errors import DamagedData, UsageError, UsrganError
from shards.format.manifest import Manifest, Option, ShardEntry
from shards.io import atomic
from shards.terminal import console


def discover(job: Job) -> tuple[Job, Scan, set[str]]:
    """Check the options and look for photos; nothing is written.

    Returns:
        the job with digests of other folders it depends on, what lies there, and the names of the
        photos that a list or a folder makes validate.
    """
    check_options(job.options)
    found = scan_sources(job.sources)
    if job.lr_dirs:
        found = pair_with_lr(found, job.lr_dirs, job.options.scale)
        options = msgspec.structs.replace(job.options, lr_dir=partners_sha256(found))
        check_options(options)
        job = msgspec.structs.replace(job, options=options)
    val_names = {photo.name for photo in found.photos if photo.val}
    if job.options.val_list:  # what is published to validate never trains
        val_names |= match_names(found, job.options.val_list)
        if len(val_names) == len(found.photos):
            raise UsageError(
                f"--val-list: names all {len(val_names)} photos; leave some out, to train on"
            )
    return job, found, val_names


def dry_run_scan(job: Job) -> tuple[Job, Scan, set[str]]:
    """All checks that `prepare` makes before it writes, but for the bytes of shards; nothing is written.

    Returns:
        what `survey` does.
    """
    job, found, val_names = discover(job)
    job = _hash_test_pictures(job, hash_folder(job.exclude_like))
    output_folder.check_output_folder(job.out)
    if not job.overwrite:
        promise = output_folder.build_spec(job.options, found)
        try:
            output_folder.check_build_spec(job.out, promise)
        except DamagedData as error:
            if not job.repair:
                raise
            console.say(repair.describe_irreparable(job.out, error))
        if job.repair:
            _check_repairable(job, promise)
        elif job.url:
            upload.finished_upload(job.url, promise)
    return job, found, val_names


def prepare(job: Job, watch: RunTerminal) -> Report:
    """Make the data set, resume it, or find it finished.

    Raises:
        UsageError: the options contradict each other, or the folder holds something else.
        DamagedData: the data set exists but parts of it are missing.
        TooManyRejects: more photos were refused than `max_rejects`.
        Stopped: on request; what is finished stays.
    """
    job, found, val_names = discover(job)
    watch.say(describe_layout(found, val_names))
    output_folder.check_output_folder(job.out)
    tests = hash_folder(job.exclude_like)
    job = _hash_test_pictures(job, tests)
    with atomic.locked(job.out, holder="prep-shards"):
        promise = output_folder.build_spec(job.options, found)
        if job.repair:
            _check_repairable(job, promise)
            repair.remove_damaged(job.out, promise, watch)
        done = None if job.overwrite else _existing_result(job, found, promise)
        if done:
            report = build_report(job, done, already_done=True)
            if job.url and (job.out / "_work").exists():  # of a run that was killed at its very end
                upload.release_url(job.url)
            atomic.remove_file(job.out if job.url else job.out / "_work")
            return report
        work = (job.out / "_work").absolute()
        with open_engine(
            job.engine, workers=job.workers, scheduler=job.scheduler, stopping=watch.stopping
        ) as run:
            _begin_work(job, work, promise)
            chunks = cut_photos(job, work, found.photos, run, watch)
            plan = make_plan(work, chunks, job.options, val_names=val_names, tests=tests)
            write_rejects(job.out, plan)
            check_rejects(job, found, plan)
            save_plan(work, plan)
            manifest = build_manifest(
                job, found, plan, promise, _pack_shards(job, work, plan, run, watch)
            )
            if not repair.is_as_expected(work, manifest):
                watch.say("photos or usrgan are not what they were: all shards are written anew")
                output_folder.remove_shards(job.out)
                manifest = build_manifest(
                    job, found, plan, promise, _pack_shards(job, work, plan, run, watch)
                )
        try:
            now = scan_sources(job.sources)
        except UsageError as error:  # it was there when the run began
            raise UsrganError(f"{error}, and run the same command again") from None
        if path := find_changed(found, now):
            raise UsrganError(f"{path}: was changed during the run; run the same command again")
        output_folder.sweep_work(job.out)
        manifest = writer.publish(job.out, manifest)
        if job.url:
            upload.publish_dataset(job.out, job.url, manifest)
        report = build_report(job, manifest, already_done=False)
        atomic.remove_file(job.out if job.url else work)
    return report


def _existing_result(job: Job, found: Scan, promise: dict[str, Option]) -> Manifest | None:
    """The manifest, if the very data set that is asked for is there already."""
    done = (
        upload.finished_upload(job.url, promise)
        if job.url
        else output_folder.finished_dataset(job.out, promise)
    )
    if done:
        repair.check_same_photos(job.url or job.out, done, found.photos)
    return done


def _begin_work(job: Job, work: Path, promise: dict[str, Option]) -> None:
    """Take the folder and the URL for this data set; where the URL is refused, no promise stays behind."""
    if job.overwrite:
        output_folder.clear_dataset(job.out)
        if job.url:
            upload.clear_url(job.url)
    begun_before = (work / output_folder.BUILD_SPEC).exists()
    output_folder.begin_work(work, promise)
    if job.url:
        try:
            upload.claim_url(work, job.url, promise)
        except UsrganError:
            if not begun_before:
                atomic.remove_file(work)
            raise


def _check_repairable(job: Job, promise: dict[str, Option]) -> None:
    """Only what lies on disk is repaired: a data set on its way to a URL, but not one that is there."""
    if job.url and upload.finished_upload(job.url, promise):
        raise UsageError(
            f"--repair: {job.url} holds the finished data set; use --overwrite, or repair a local copy"
        )


def _hash_test_pictures(job: Job, tests: Sequence[tuple[str, PerceptualHash]]) -> Job:
    """The job with the digest of its test pictures among its options."""
    if not tests:
        return job
    digest = hashlib.sha256(msgspec.json.encode(tests)).hexdigest()
    options = msgspec.structs.replace(job.options, exclude_like=digest)
    return msgspec.structs.replace(job, options=options)


def _pack_shards(
    job: Job, work: Path, plan: Plan, run: RunTasks, watch: RunTerminal
) -> dict[str, ShardEntry]:
    """Write (and send) the shards that are not there yet."""
    entries: dict[str, ShardEntry] = {}
    for shard in plan.shards:
        entry = writer.find_finished_shard(job.out, shard.name)
        if entry and (not job.url or upload.is_sent(job.out, shard.name)):
            entries[shard.name] = entry
    name = tasks.save_task(work, job.options, ("", ()), engine=job.engine, url=job.url)
    todo = [
        (str(work), name, number)
        for number, shard in enumerate(plan.shards)
        if shard.name not in entries
    ]
    total = len(plan.shards)
    with watch.progress("pack", total=total, unit="shards", done=len(entries)) as advance:  # type: ignore[attr-defined]
        for ended in run(tasks.pack_task, todo):
            if isinstance(ended, Crashed):
                raise UsrganError(
                    "a process that writes shards was killed again and again"
                    " (out of memory?); use fewer --workers or --samples-per-shard"
                )
            entries[ended.result.name] = ended.result
            advance(1, "")
    return entries
