"""A whole run: scan, extract, plan, pack, publish. Every task leaves a durable file, so a killed run resumes."""

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
from pipeline.photos.official import lr_listing_sha256 as lr_digest
from pipeline.photos.official import pair_with_lr
from pipeline.photos.scan import Scan, describe_layout, find_changed, match_names, scan_sources
from pipeline.stages import output_folder, repair, tasks, upload
from pipeline.stages.cut import extract_photos
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
from shards.messages import format_count
from shards.terminal import console


def discover(job: Job) -> tuple[Job, Scan, set[str]]:
    """Check the options and list the photos; write nothing.

    Returns:
        the job, with digests of the other folders in its options; the scan; the names of the validation
        photos by list or folder.
    """
    check_options(job.options)
    scan = scan_sources(job.sources)
    if job.lr_dirs:
        scan = pair_with_lr(scan, job.lr_dirs, job.options.scale)
        options = msgspec.structs.replace(job.options, lr_dir=lr_digest(scan))
        check_options(options)
        job = msgspec.structs.replace(job, options=options)
    val_names = {photo.name for photo in scan.photos if photo.val}
    if job.options.val_list:  # published validation photos never become training photos
        val_names |= match_names(scan, job.options.val_list)
        if len(val_names) == len(scan.photos):
            raise UsageError(
                f"--val-list: names all {format_count(len(val_names), 'photo')}; leave some for training"
            )
    return job, scan, val_names


def dry_run_scan(job: Job) -> tuple[Job, Scan, set[str]]:
    """Make all checks of `prepare` except reading shards; write nothing.

    Returns:
        the result of `discover`, with the digest of the test images in the options.
    """
    job, scan, val_names = discover(job)
    job = _add_test_digest(job, hash_folder(job.exclude_like))
    output_folder.check_output_folder(job.out)
    if not job.overwrite:
        spec = output_folder.build_spec(job.options, scan)
        try:
            output_folder.check_build_spec(job.out, spec)
        except DamagedData as error:
            if not job.repair:
                raise
            console.say(repair.describe_irreparable(job.out, error))
        if job.repair:
            _check_repairable(job, spec)
        elif job.url:
            upload.finished_upload(job.url, spec)
    return job, scan, val_names


def prepare(job: Job, terminal: RunTerminal) -> Report:
    """Make the data set, resume an unfinished run, or report a finished data set.

    Raises:
        UsageError: options contradict each other, or the folder holds another data set.
        DamagedData: the data set exists but is damaged.
        TooManyRejects: more photos were rejected than `max_rejects`.
        Stopped: on request; finished work stays.
    """
    job, scan, val_names = discover(job)
    terminal.say(describe_layout(scan, val_names))
    output_folder.check_output_folder(job.out)
    tests = hash_folder(job.exclude_like)
    job = _add_test_digest(job, tests)
    with atomic.locked(job.out, holder="prep-shards"):
        spec = output_folder.build_spec(job.options, scan)
        if job.repair:
            _check_repairable(job, spec)
            repair.remove_damaged(job.out, spec, terminal)
        done = None if job.overwrite else _find_finished(job, scan, spec)
        if done:
            report = build_report(job, done, already_done=True)
            if job.url and (job.out / "_work").exists():  # a run was killed after it published
                upload.release_url(job.url)
            atomic.remove_file(job.out if job.url else job.out / "_work")
            return report
        work = (job.out / "_work").absolute()
        with open_engine(
            job.engine,
            workers=job.workers,
            scheduler=job.scheduler,
            stop_requested=terminal.stop_requested,
        ) as run:
            _begin_work(job, work, spec)
            chunks = extract_photos(job, work, scan.photos, run, terminal)
            plan = make_plan(work, chunks, job.options, val_names=val_names, tests=tests)
            write_rejects(job.out, plan)
            check_rejects(job, scan, plan)
            save_plan(work, plan)
            manifest = build_manifest(
                job, scan, plan, spec, _pack_shards(job, work, plan, run, terminal)
            )
            if not repair.is_as_expected(work, manifest):
                terminal.say(
                    "photos or usrgan have changed since the data set was made: rewriting all shards"
                )
                output_folder.remove_shards(job.out)
                manifest = build_manifest(
                    job, scan, plan, spec, _pack_shards(job, work, plan, run, terminal)
                )
        try:
            now = scan_sources(job.sources)
        except UsageError as error:  # the source existed when the run began
            raise UsrganError(f"{error}, and run the same command again") from None
        if path := find_changed(scan, now):
            raise UsrganError(f"{path}: changed during the run; run the same command again")
        output_folder.sweep_work(job.out)
        manifest = writer.publish(job.out, manifest)
        if job.url:
            upload.publish_dataset(job.out, job.url, manifest)
        report = build_report(job, manifest, already_done=False)
        atomic.remove_file(job.out if job.url else work)
    return report


def _find_finished(job: Job, scan: Scan, spec: dict[str, Option]) -> Manifest | None:
    """Return the manifest if exactly the requested data set is already finished."""
    manifest = (
        upload.finished_upload(job.url, spec)
        if job.url
        else output_folder.finished_dataset(job.out, spec)
    )
    if manifest:
        repair.check_same_photos(job.url or job.out, manifest, scan.photos)
    return manifest


def _begin_work(job: Job, work: Path, spec: dict[str, Option]) -> None:
    """Claim the folder and the URL for this data set; if the URL is refused, leave no build specification."""
    if job.overwrite:
        output_folder.clear_dataset(job.out)
        if job.url:
            upload.clear_url(job.url)
    had_begun = (work / output_folder.BUILD_SPEC).exists()
    output_folder.begin_work(work, spec)
    if job.url:
        try:
            upload.claim_url(work, job.url, spec)
        except UsrganError:
            if not had_begun:
                atomic.remove_file(work)
            raise


def _check_repairable(job: Job, spec: dict[str, Option]) -> None:
    """Refuse to repair a finished data set at a URL; one that is still on the local disk can be repaired."""
    if job.url and upload.finished_upload(job.url, spec):
        raise UsageError(
            f"--repair: {job.url} holds the finished data set; use --overwrite, or repair a local copy"
        )


def _add_test_digest(job: Job, tests: Sequence[tuple[str, PerceptualHash]]) -> Job:
    """Return the job with the digest of its test images in the options."""
    if not tests:
        return job
    digest = hashlib.sha256(msgspec.json.encode(tests)).hexdigest()
    options = msgspec.structs.replace(job.options, exclude_like=digest)
    return msgspec.structs.replace(job, options=options)


def _pack_shards(
    job: Job, work: Path, plan: Plan, run: RunTasks, terminal: RunTerminal
) -> dict[str, ShardEntry]:
    """Write, and upload, the shards that are missing; return the entries of all shards."""
    entries: dict[str, ShardEntry] = {}
    for shard in plan.shards:
        entry = writer.find_finished_shard(job.out, shard.name)
        if entry and (not job.url or upload.is_sent(job.out, shard.name)):
            entries[shard.name] = entry
    name = tasks.save_context(work, job.options, ("", ()), engine=job.engine, url=job.url)
    todo = [
        (str(work), name, number)
        for number, shard in enumerate(plan.shards)
        if shard.name not in entries
    ]
    total = len(plan.shards)
    with terminal.progress("pack", total=total, unit="shards", done=len(entries)) as advance:  # type: ignore[attr-defined]
        for outcome in run(tasks.pack_task, todo):
            if isinstance(outcome, Crashed):
                raise UsrganError(
                    "a process that writes shards was killed repeatedly"
                    " (out of memory?); use fewer --workers or --samples-per-shard"
                )
            entries[outcome.result.name] = outcome.result
            advance(1, "")
    return entries
