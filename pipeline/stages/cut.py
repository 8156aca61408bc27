"""Extraction stage: every photo is read once, and its patches are written to spills, chunk by chunk."""

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
from shards.messages import format_count

MAX_CHUNKS = 4096
"""Largest number of spills, because each shard is merged from all of them."""
_CHUNK_BYTES = 4 * 2**20
"""Largest total size of the photos in a chunk of several, bytes."""
_MIN_CHUNKS = 32
"""Number of chunks, for the processes to share, below which no chunk has several photos."""


def extract_photos(
    job: Job, work: Path, photos: Sequence[FoundPhoto], run: RunTasks, terminal: RunTerminal
) -> int:
    """Write the spills of all chunks that are missing; return the number of chunks.

    If a chunk crashes its process, each of its photos is read alone, and those that crash again are rejected.
    """
    chunks = make_chunks(photos)
    missing = [n for n in range(len(chunks)) if load_spill(work, n, chunks[n]) is None]
    # largest first, because a large one at the end would leave the other processes idle
    missing.sort(key=lambda n: -sum(photo.size for photo in chunks[n]))
    before = len(photos) - sum(len(chunks[number]) for number in missing)
    if before:
        terminal.say(f"{format_count(before, 'photo')} already extracted by an earlier run")
    saved = tasks.save_chunks(work, chunks)
    crashed: frozenset[str] = frozenset()
    for attempt in range(2):
        name = tasks.save_context(work, job.options, saved, engine=job.engine, crashed=crashed)
        todo = [(str(work), name, number) for number in missing]
        missing = []
        if not todo:
            break
        with terminal.progress("extract", total=len(photos), unit="photos", done=before) as advance:  # type: ignore[attr-defined]
            for outcome in run(tasks.extract_chunk, todo):
                if isinstance(outcome, Completed):
                    advance(len(chunks[outcome.result]), "")
                else:
                    missing.append(int(str(outcome.task[2])))
        if missing and attempt == 0:
            crashed = _find_crashing(
                work, name, {number: chunks[number] for number in missing}, run
            )
    if missing:
        name = chunks[missing[0]][0].name
        raise UsrganError(
            f"{name}: its process was killed repeatedly (out of memory?); use fewer --workers"
        )
    return len(chunks)


def make_chunks(photos: Sequence[FoundPhoto]) -> list[list[FoundPhoto]]:
    """Group photos into chunks, one spill each; independent of engine and workers.

    A chunk has up to four photos of 4 MiB in all, because writing a durable file costs as much as ten patches. With
    few photos it has fewer, to make work for all processes. With very many it has more, of any size.
    """
    least = -(-len(photos) // MAX_CHUNKS)
    most = max(least, min(FEW, len(photos) // _MIN_CHUNKS), 1)
    chunks: list[list[FoundPhoto]] = []
    size = 0
    for photo in photos:
        full = not chunks or len(chunks[-1]) >= most or size + photo.size > _CHUNK_BYTES
        if full and not (chunks and len(chunks[-1]) < least):
            chunks.append([])
            size = 0
        chunks[-1].append(photo)
        size += photo.size
    return chunks


def _find_crashing(
    work: Path, name: str, chunks: dict[int, Sequence[FoundPhoto]], run: RunTasks
) -> frozenset[str]:
    """Return the names of the photos that crash a process which only reads them."""
    todo = [
        (str(work), name, number, index)
        for number, chunk in chunks.items()
        for index in range(len(chunk))
    ]
    survived = {
        outcome.result for outcome in run(tasks.probe_photo, todo) if isinstance(outcome, Completed)
    }
    photos = (photo for chunk in chunks.values() for photo in chunk)
    return frozenset(photo.name for photo in photos if photo.name not in survived)
