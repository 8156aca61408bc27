"""The run: scan, cut, plan, pack, publish. Each unit leaves a durable marker, so a killed run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.execution.engines import Run, open_engine
from pipeline.execution.pool import Died
from pipeline.job import Job, Watch
from pipeline.options import check_options
from pipeline.photos.near_duplicates import Look, looks_below
from pipeline.photos.official import listing_sha256 as partners_sha256
from pipeline.photos.official import with_partners
from pipeline.photos.scan import Scan, changed, describe, matching, scan
from pipeline.stages import output_folder, repair, tasks, upload
from pipeline.stages.cut import cut
from pipeline.stages.pack import save_plan
from pipeline.stages.plan import Plan, make_plan
from pipeline.stages.report import Report, check_rejects, manifest_of, report_of, write_rejects
from shards import writer
from shards.errors import DamagedData, UsageError, UsrganError
from shards.format.manifest import Manifest, Option, ShardEntry
from shards.io import atomic
from shards.terminal import console


def survey(job: Job) -> tuple[Job, Scan, set[str]]:
    """Check the options and look for photos; nothing is written.

    Returns:
        the job with digests of other folders it depends on, what lies there, and the names of the
        photos that a list or a folder makes validate.
    """
    check_options(job.options)
    found = scan(job.sources)
    if job.lr_dirs:
        found = with_partners(found, job.lr_dirs, job.options.scale)
        options = msgspec.structs.replace(job.options, lr_dir=partners_sha256(found))
        check_options(options)
        job = msgspec.structs.replace(job, options=options)
    val_names = {photo.name for photo in found.photos if photo.val}
    if job.options.val_list:  # what is published to validate never trains
        val_names |= matching(found, job.options.val_list)
        if len(val_names) == len(found.photos):
            raise UsageError(
                f"--val-list: names all {len(val_names)} photos; leave some out, to train on"
            )
    return job, found, val_names


def rehearse(job: Job) -> tuple[Job, Scan, set[str]]:
    """All checks that `prepare` makes before it writes, but for the bytes of shards; nothing is written.

    Returns:
        what `survey` does.
    """
    job, found, val_names = survey(job)
    job = _with_tests(job, looks_below(job.exclude_like))
    output_folder.check_folder(job.out)
    if not job.overwrite:
        promise = output_folder.promise_of(job.options, found)
        try:
            output_folder.check_promise(job.out, promise)
        except DamagedData as error:
            if not job.repair:
                raise
            console.say(repair.past_mending(job.out, error))
        if job.repair:
            _check_repairable(job, promise)
        elif job.url:
            upload.finished_upload(job.url, promise)
    return job, found, val_names


def prepare(job: Job, watch: Watch) -> Report:
    """Make the data set, or go on with it, or find it done.

    Raises:
        UsageError: the options cannot be, or the folder holds something else.
        DamagedData: the data set is there but parts of it are gone.
        TooManyRejects: more photos were refused than `max_rejects`.
        Stopped: on request; what is finished stays.
    """
    job, found, val_names = survey(job)
    watch.say(describe(found, val_names))
    output_folder.check_folder(job.out)
    tests = looks_below(job.exclude_like)
    job = _with_tests(job, tests)
    with atomic.locked(job.out, holder="prep-shards"):
        promise = output_folder.promise_of(job.options, found)
        if job.repair:
            _check_repairable(job, promise)
            repair.take_away_damaged(job.out, promise, watch)
        done = None if job.overwrite else _done(job, found, promise)
        if done:
            report = report_of(job, done, already_done=True)
            if job.url and (job.out / "_work").exists():  # of a run that was killed at its very end
                upload.release(job.url)
            atomic.remove(job.out if job.url else job.out / "_work")
            return report
        work = (job.out / "_work").absolute()
        with open_engine(
            job.engine, workers=job.workers, scheduler=job.scheduler, stopping=watch.stopping
        ) as run:
            _begin(job, work, promise)
            chunks = cut(job, work, found.photos, run, watch)
            plan = make_plan(work, chunks, job.options, val_names=val_names, tests=tests)
            write_rejects(job.out, plan)
            check_rejects(job, found, plan)
            save_plan(work, plan)
            manifest = manifest_of(job, found, plan, promise, _pack(job, work, plan, run, watch))
            if not repair.is_as_expected(work, manifest):
                watch.say("photos or usrgan are not what they were: all shards are written anew")
                output_folder.drop_shards(job.out)
                manifest = manifest_of(
                    job, found, plan, promise, _pack(job, work, plan, run, watch)
                )
        try:
            now = scan(job.sources)
        except UsageError as error:  # it was there when the run began
            raise UsrganError(f"{error}, and run the same command again") from None
        if path := changed(found, now):
            raise UsrganError(f"{path}: was changed during the run; run the same command again")
        output_folder.sweep(job.out)
        manifest = writer.publish(job.out, manifest)
        if job.url:
            upload.publish(job.out, job.url, manifest)
        report = report_of(job, manifest, already_done=False)
        atomic.remove(job.out if job.url else work)
    return report


def _done(job: Job, found: Scan, promise: dict[str, Option]) -> Manifest | None:
    """The manifest, if the very data set that is asked for is there already."""
    done = (
        upload.finished_upload(job.url, promise)
        if job.url
        else output_folder.finished_dataset(job.out, promise)
    )
    if done:
        repair.check_same_photos(job.url or job.out, done, found.photos)
    return done


def _begin(job: Job, work: Path, promise: dict[str, Option]) -> None:
    """Take the folder and the URL for this data set; where the URL is refused, no promise stays behind."""
    if job.overwrite:
        output_folder.clear_dataset(job.out)
        if job.url:
            upload.clear(job.url)
    begun_before = (work / output_folder.PROMISE).exists()
    output_folder.begin_work(work, promise)
    if job.url:
        try:
            upload.claim(work, job.url, promise)
        except UsrganError:
            if not begun_before:
                atomic.remove(work)
            raise


def _check_repairable(job: Job, promise: dict[str, Option]) -> None:
    """Only what lies on disk is repaired: a data set on its way to a URL, but not one that is there."""
    if job.url and upload.finished_upload(job.url, promise):
        raise UsageError(
            f"--repair: {job.url} holds the finished data set; use --overwrite, or repair a local copy"
        )


def _with_tests(job: Job, tests: Sequence[tuple[str, Look]]) -> Job:
    """The job with the digest of its test pictures among its options."""
    if not tests:
        return job
    digest = hashlib.sha256(msgspec.json.encode(tests)).hexdigest()
    options = msgspec.structs.replace(job.options, exclude_like=digest)
    return msgspec.structs.replace(job, options=options)


def _pack(job: Job, work: Path, plan: Plan, run: Run, watch: Watch) -> dict[str, ShardEntry]:
    """Write (and send) the shards that are not there yet."""
    entries: dict[str, ShardEntry] = {}
    for shard in plan.shards:
        entry = writer.finished_shard(job.out, shard.name)
        if entry and (not job.url or upload.was_sent(job.out, shard.name)):
            entries[shard.name] = entry
    name = tasks.save_task(work, job.options, ("", ()), engine=job.engine, url=job.url)
    todo = [
        (str(work), name, number)
        for number, shard in enumerate(plan.shards)
        if shard.name not in entries
    ]
    total = len(plan.shards)
    with watch.progress("pack", total=total, unit="shards", done=len(entries)) as advance:  # type: ignore[attr-defined]
        for ended in run(tasks.pack, todo):
            if isinstance(ended, Died):
                raise UsrganError(
                    "a process that writes shards was killed again and again"
                    " (out of memory?); use fewer --workers or --samples-per-shard"
                )
            entries[ended.result.name] = ended.result
            advance(1, "")
    return entries
