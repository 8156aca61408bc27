"""Phase one: every photo is read once and its patches are spilled, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.execution.engines import RunTasks
from pipeline.execution.pool import Completed
from pipeline.job import Job, RunTerminal
from pipeline.patches.spill import FEW, load_spill
from pipeline.photos.scan import FoundPhoto
from pipeline.stages import tasks
from shards.errors import UsrganError

MAX_CHUNKS = 4096
"""At most so many spills: a shard is merged out of all of them."""
_CHUNK_BYTES = 4 * 2**20
_MAX_CHUNK_PHOTOS = 32


def cut_photos(
    job: Job, work: Path, photos: Sequence[FoundPhoto], run: RunTasks, watch: RunTerminal
) -> int:
    """Spill all chunks that are not yet; returns how many there are.

    A process that dies is tried again; then each photo of its chunk is read by itself, and those
    that kill even such a process are left out.
    """
    chunks = make_chunks(photos)
    missing = [n for n in range(len(chunks)) if load_spill(work, n, chunks[n]) is None]
    missing.sort(
        key=lambda n: -sum(photo.size for photo in chunks[n])
    )  # a long one last holds all up
    before = len(photos) - sum(len(chunks[number]) for number in missing)
    if before:
        watch.say(f"{before:,} photos were cut by an earlier run")
    listed = tasks.save_chunks(work, chunks)
    crashed: frozenset[str] = frozenset()
    for attempt in range(2):
        name = tasks.save_task(work, job.options, listed, engine=job.engine, crashed=crashed)
        todo = [(str(work), name, number) for number in missing]
        missing = []
        if not todo:
            break
        with watch.progress("cut", total=len(photos), unit="photos", done=before) as advance:  # type: ignore[attr-defined]
            for ended in run(tasks.cut_chunk, todo):
                if isinstance(ended, Completed):
                    advance(len(chunks[ended.result]), "")
                else:
                    missing.append(int(str(ended.unit[2])))
        if missing and attempt == 0:
            crashed = _find_crashing(
                work, name, {number: chunks[number] for number in missing}, run
            )
    if missing:
        name = chunks[missing[0]][0].name
        raise UsrganError(
            f"{name}: its process was killed again and again (out of memory?); use fewer --workers"
        )
    return len(chunks)


def make_chunks(photos: Sequence[FoundPhoto]) -> list[list[FoundPhoto]]:
    """The photos that are cut together, whatever runs them.

    Up to four small ones of 4 MiB in all, as a durable file costs as much as ten patches; fewer where
    there are few photos, so that there are many chunks for the processes to share; more, of
    any size, where there would be too many chunks.
    """
    least = -(-len(photos) // MAX_CHUNKS)
    most = max(least, min(FEW, len(photos) // _MAX_CHUNK_PHOTOS), 1)
    chunks: list[list[FoundPhoto]] = []
    held = 0
    for photo in photos:
        full = not chunks or len(chunks[-1]) >= most or held + photo.size > _CHUNK_BYTES
        if full and not (chunks and len(chunks[-1]) < least):
            chunks.append([])
            held = 0
        chunks[-1].append(photo)
        held += photo.size
    return chunks


def _find_crashing(
    work: Path, name: str, chunks: dict[int, Sequence[FoundPhoto]], run: RunTasks
) -> frozenset[str]:
    """The photos that kill a process which does nothing but read them."""
    todo = [
        (str(work), name, number, place)
        for number, chunk in chunks.items()
        for place in range(len(chunk))
    ]
    survived = {
        ended.result for ended in run(tasks.probe_photo, todo) if isinstance(ended, Completed)
    }
    photos = (photo for chunk in chunks.values() for photo in chunk)
    return frozenset(photo.name for photo in photos if photo.name not in survived)
