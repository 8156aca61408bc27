"""Units of work as every engine runs them: a name and a number travel, all else lies in files.

The scratch folder holds `job-DIGEST.json` (options and versions) and `photos-DIGEST.bin` (the chunks),
named by their content, so a worker on another machine never sees an older one. A worker whose
libraries would write other bytes refuses to work.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np

from pipeline.execution.engines import Engine
from pipeline.options import Options, differences, library_versions
from pipeline.patches.degrade import degrade
from pipeline.patches.spill import open_photo, write_spill
from pipeline.photos.scan import FoundPhoto
from pipeline.stages.pack import load_shards, pack_shard
from shards.errors import UsageError
from shards.format import codec
from shards.format.manifest import ShardEntry
from shards.images import resize
from shards.io import atomic
from shards.version import __version__


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Data shared by all tasks of a run."""

    options: Options
    url: str
    photos: str
    """Name of the file of chunks."""
    starts: tuple[int, ...]
    """Where each chunk begins in it, and the end, bytes."""
    crashed: tuple[str, ...]
    """Photos that killed a process before."""
    libraries: dict[str, str]
    fingerprint: str
    """Digest of a small image that the planning process encoded; empty where all tasks run on its machine."""


class _Photo(msgspec.Struct, frozen=True, array_like=True):
    place: bytes
    """A path of any bytes, or a URL."""
    url: bool
    name: str
    size: int
    mtime_ns: int
    val: bool
    lr: bytes
    lr_stamp: tuple[int, int]


def save_chunks(work: Path, chunks: Sequence[Sequence[FoundPhoto]]) -> tuple[str, tuple[int, ...]]:
    """Write which photos each chunk has; returns the file's name and where each chunk begins."""
    packed = [
        msgspec.msgpack.encode([_encode_photos(photo) for photo in chunk]) for chunk in chunks
    ]
    content = b"".join(packed)
    name = f"photos-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    atomic.write_file(work / name, content)
    return name, (0, *np.cumsum([len(each) for each in packed]).tolist())


def save_task(
    work: Path,
    options: Options,
    photos: tuple[str, tuple[int, ...]],
    *,
    engine: Engine,
    url: str = "",
    crashed: frozenset[str] = frozenset(),
) -> str:
    """Write what the units share; returns the file's name, which every unit is given."""
    task = Task(
        options=options,
        url=url,
        photos=photos[0],
        starts=photos[1],
        crashed=tuple(sorted(crashed)),
        libraries=library_versions(),
        fingerprint="" if engine == "local" else task_fingerprint(),
    )
    content = msgspec.json.encode(task)
    name = f"job-{hashlib.sha256(content).hexdigest()[:16]}.json"
    atomic.write_file(work / name, content)
    return name


def cut_chunk(work: str, job: str, chunk: int) -> int:
    """Spill one chunk; returns its number.

    Raises:
        UsageError: this process would write other bytes than the one that planned.
    """
    task = _load_task(work, job)
    photos = _load_photos(Path(work), task, chunk)
    return write_spill(Path(work), chunk, photos, task.options, frozenset(task.crashed))


def probe_photo(work: str, job: str, chunk: int, place: int) -> str:
    """Read one photo of a chunk and nothing else; returns its name."""
    task = _load_task(work, job)
    return open_photo(_load_photos(Path(work), task, chunk)[place], task.options)


def pack_task(work: str, job: str, number: int) -> ShardEntry:
    """Write the shard of this number in the plan.

    Raises:
        UsageError: this process would write other bytes than the one that planned.
    """
    task = _load_task(work, job)
    return pack_shard(Path(work).parent, load_shards(Path(work))[number], task.options, task.url)


@functools.lru_cache(maxsize=1)
def task_fingerprint() -> str:
    """Digest of what this process makes of a small picture: the same on all machines of a run."""
    probe = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    digest = hashlib.sha256(__version__.encode())
    for kernel in ("pillow", "matlab"):
        digest.update(resize.downscale(probe, scale=4, kernel=kernel).tobytes())
    for name in ("png", "webp", "raw"):
        digest.update(codec.encode(probe, name))
    digest.update(degrade(probe, scale=4, key="probe").tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _load_task(work: str, job: str) -> Task:
    cv2.setNumThreads(1)  # every engine runs as many units as there are cores
    task = msgspec.json.decode((Path(work) / job).read_bytes(), type=Task)
    here = library_versions()
    if here != task.libraries or (task.fingerprint and task_fingerprint() != task.fingerprint):
        changed = (
            differences(dict(task.libraries), dict(here)) or "the same versions, other results"
        )
        raise UsageError(
            f"worker on {platform.node()}: would write other bytes ({changed});"
            " install the same requirements on all machines"
        )
    return task


def _load_photos(work: Path, task: Task, chunk: int) -> list[FoundPhoto]:
    start, end = task.starts[chunk], task.starts[chunk + 1]
    with (work / task.photos).open("rb") as stream:
        stream.seek(start)
        packed = msgspec.msgpack.decode(stream.read(end - start), type=list[_Photo])
    return [_decode_photo(photo) for photo in packed]


def _encode_photos(photo: FoundPhoto) -> _Photo:
    url = isinstance(photo.path, str)
    place = photo.path if isinstance(photo.path, str) else photo.path.absolute()
    lr = os.fsencode(photo.lr.absolute()) if photo.lr else b""
    return _Photo(
        os.fsencode(place),
        url,
        photo.name,
        photo.size,
        photo.mtime_ns,
        photo.val,
        lr,
        photo.lr_stamp,
    )


def _decode_photo(photo: _Photo) -> FoundPhoto:
    place = os.fsdecode(photo.place)
    lr = Path(os.fsdecode(photo.lr)) if photo.lr else None
    path = place if photo.url else Path(place)
    return FoundPhoto(path, photo.name, photo.size, photo.mtime_ns, photo.val, lr, photo.lr_stamp)
