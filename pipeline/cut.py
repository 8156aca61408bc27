"""Phase one: every photo is read once and its patches are spilled, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import pool
from pipeline.job import Job, Watch
from pipeline.scan import Found
from pipeline.spill import load_spill, open_photo, write_spill
from shards.errors import UsrganError

CHUNKS = 4096
"""At most so many spills: a shard is merged out of all of them."""


def cut(job: Job, work: Path, photos: Sequence[Found], watch: Watch) -> int:
    """Spill all chunks that are not yet; returns how many there are."""
    size = -(-len(photos) // CHUNKS)
    chunks = [photos[at : at + size] for at in range(0, len(photos), size)]
    crashed: frozenset[str] = frozenset()
    missing = [n for n in range(len(chunks)) if load_spill(work, n, chunks[n]) is None]
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
