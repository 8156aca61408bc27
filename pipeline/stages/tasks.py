"""Tasks as every engine runs them: arguments are names and numbers, all other data are in files.

The scratch folder holds `job-DIGEST.json` (options and versions) and `photos-DIGEST.bin` (the chunks). Their names
contain a digest of their content, so a worker on another machine never reads an outdated file. A worker whose
libraries would write different bytes refuses to work.
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
from pipeline.options import Options, describe_differences, library_versions
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


class TaskContext(msgspec.Struct, frozen=True, kw_only=True):
    """Data shared by all tasks of one stage."""

    options: Options
    url: str
    photos: str
    """Name of the file with the chunks."""
    starts: tuple[int, ...]
    """Offset of each chunk in this file, and its end, bytes."""
    crashed: tuple[str, ...]
    """Names of photos that crashed a process before."""
    libraries: dict[str, str]
    fingerprint: str
    """Result of `compute_fingerprint` in the planning process; empty if all tasks run on its machine."""


class _Photo(msgspec.Struct, frozen=True, array_like=True):
    location: bytes
    """A path of any bytes, or a URL as UTF-8."""
    url: bool
    name: str
    size: int
    mtime_ns: int
    val: bool
    lr: bytes
    lr_stamp: tuple[int, int]


def save_chunks(work: Path, chunks: Sequence[Sequence[FoundPhoto]]) -> tuple[str, tuple[int, ...]]:
    """Write the photos of all chunks; return the file's name and the offset of each chunk."""
    packed = [msgspec.msgpack.encode([_encode_photo(photo) for photo in chunk]) for chunk in chunks]
    content = b"".join(packed)
    name = f"photos-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    atomic.write_file(work / name, content)
    return name, (0, *np.cumsum([len(chunk) for chunk in packed]).tolist())


def save_context(
    work: Path,
    options: Options,
    photos: tuple[str, tuple[int, ...]],
    *,
    engine: Engine,
    url: str = "",
    crashed: frozenset[str] = frozenset(),
) -> str:
    """Write the data shared by all tasks; return the file's name, an argument of every task."""
    context = TaskContext(
        options=options,
        url=url,
        photos=photos[0],
        starts=photos[1],
        crashed=tuple(sorted(crashed)),
        libraries=library_versions(),
        fingerprint="" if engine == "local" else compute_fingerprint(),
    )
    content = msgspec.json.encode(context)
    name = f"job-{hashlib.sha256(content).hexdigest()[:16]}.json"
    atomic.write_file(work / name, content)
    return name


def extract_chunk(work: str, job: str, chunk: int) -> int:
    """Extract the patches of one chunk into its spill; return the chunk's number.

    Raises:
        UsageError: this process would write different bytes than the planning process.
    """
    context = _load_context(work, job)
    photos = _load_photos(Path(work), context, chunk)
    return write_spill(Path(work), chunk, photos, context.options, frozenset(context.crashed))


def probe_photo(work: str, job: str, chunk: int, index: int) -> str:
    """Read one photo of a chunk and return its name."""
    context = _load_context(work, job)
    return open_photo(_load_photos(Path(work), context, chunk)[index], context.options)


def pack_task(work: str, job: str, number: int) -> ShardEntry:
    """Write one shard of the plan, by its number.

    Raises:
        UsageError: this process would write different bytes than the planning process.
    """
    context = _load_context(work, job)
    shard = load_shards(Path(work))[number]
    return pack_shard(Path(work).parent, shard, context.options, context.url)


@functools.lru_cache(maxsize=1)
def compute_fingerprint() -> str:
    """Return a digest of what this process encodes from a small image; it must agree on all machines."""
    probe = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    digest = hashlib.sha256(__version__.encode())
    for kernel in ("pillow", "matlab"):
        digest.update(resize.downscale(probe, scale=4, kernel=kernel).tobytes())
    for name in ("png", "webp", "raw"):
        digest.update(codec.encode(probe, name))
    digest.update(degrade(probe, scale=4, key="probe").tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _load_context(work: str, job: str) -> TaskContext:
    cv2.setNumThreads(1)  # every engine runs one task per core
    context = msgspec.json.decode((Path(work) / job).read_bytes(), type=TaskContext)
    versions = library_versions()
    same = versions == context.libraries
    if not same or (context.fingerprint and compute_fingerprint() != context.fingerprint):
        changed = describe_differences(dict(context.libraries), dict(versions))
        raise UsageError(
            f"worker on {platform.node()}: would write different bytes"
            f" ({changed or 'the same versions, different results'});"
            " install the same requirements on all machines"
        )
    return context


def _load_photos(work: Path, context: TaskContext, chunk: int) -> list[FoundPhoto]:
    start, end = context.starts[chunk], context.starts[chunk + 1]
    with (work / context.photos).open("rb") as stream:
        stream.seek(start)
        packed = msgspec.msgpack.decode(stream.read(end - start), type=list[_Photo])
    return [_decode_photo(photo) for photo in packed]


def _encode_photo(photo: FoundPhoto) -> _Photo:
    url = isinstance(photo.path, str)
    location = photo.path if isinstance(photo.path, str) else photo.path.absolute()
    lr = os.fsencode(photo.lr.absolute()) if photo.lr else b""
    return _Photo(
        os.fsencode(location),
        url,
        photo.name,
        photo.size,
        photo.mtime_ns,
        photo.val,
        lr,
        photo.lr_stamp,
    )


def _decode_photo(photo: _Photo) -> FoundPhoto:
    location = os.fsdecode(photo.location)
    lr = Path(os.fsdecode(photo.lr)) if photo.lr else None
    path = location if photo.url else Path(location)
    return FoundPhoto(path, photo.name, photo.size, photo.mtime_ns, photo.val, lr, photo.lr_stamp)
