"""Checks and repair of an existing data set: same photos, damaged shards, missing companion files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.job import RunTerminal
from pipeline.photos.scan import FoundPhoto
from pipeline.stages.output_folder import (
    SHARDS,
    check_build_spec,
    clear_dataset,
    remove_shard,
    write_build_spec,
)
from shards import writer
from shards.errors import DamagedData, UsageError, UsrganError, remedy
from shards.format import index
from shards.format.manifest import NAME, Manifest, Option, dataset_digest
from shards.io import atomic, remote
from shards.io.remote import Location
from shards.read.dataset import open_dataset
from shards.read.split import SplitReader
from shards.verify import check_shard, verify

_PARALLEL_READS = 16
"""Photos read and compared at a time."""
_EXPECTED = "expected"
"""Scratch file of a repair: the `dataset_sha256` that it must reproduce."""


def check_same_photos(out: Location, manifest: Manifest, photos: Sequence[FoundPhoto]) -> None:
    """Check that photos newer than the data set still have the digests stored in it.

    Checks nothing if the store has no modification times.

    Raises:
        UsageError: a photo was changed; names it.
    """
    written = _write_time_ns(out)
    newer = {photo.name: photo for photo in photos if photo.mtime_ns > written > 0}
    for split in manifest.splits if newer else ():
        reader, positions = _patch_positions(out, split, newer)
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            same = list(pool.map(partial(_is_same_photo, reader), positions))
        reader.close()
        for (photo, _), unchanged in zip(positions, same, strict=True):
            if not unchanged:
                raise UsageError(
                    f"--out {out}: holds patches of an earlier version of {photo.name};"
                    " name another folder or add --overwrite"
                )


def _write_time_ns(out: Location) -> int:
    """Return the manifest's modification time in nanoseconds since 1970; 0 if the store has none."""
    if isinstance(out, Path):
        return (out / NAME).stat().st_mtime_ns
    file = remote.list_files(out).get(NAME)
    return file.modified_ns if file else 0


def _is_same_photo(reader: SplitReader, located: tuple[FoundPhoto, int]) -> bool:
    """Whether a photo has the digest stored with the pair at its position."""
    photo, position = located
    path = photo.path
    content = remote.read_file(path) if isinstance(path, str) else path.read_bytes()
    return hashlib.sha256(content).hexdigest() == reader[position].info.src_sha256


def _patch_positions(
    out: Location, split: str, photos: dict[str, FoundPhoto]
) -> tuple[SplitReader, list[tuple[FoundPhoto, int]]]:
    """Return the reader of a split and, for each of the photos in it, the position of one pair."""
    dataset = open_dataset(out)
    reader, first = dataset.split(split), 0
    positions: dict[str, int] = {}
    for table in dataset.indices[split]:
        for number, src in enumerate(table.src.tolist()):
            if src in photos and src not in positions:
                positions[src] = first + int((table.src_id == number).argmax())
        first += len(table.key)
    return reader, [(photos[src], position) for src, position in positions.items()]


def describe_irreparable(out: Path, error: DamagedData) -> str:
    """Return the message for a damaged manifest: without it nothing can be reused."""
    problem = str(error).removesuffix(f"; {remedy(str(out / NAME))}")
    return f"{problem}; the repair makes the whole data set again"


def remove_damaged(out: Path, spec: dict[str, Option], terminal: RunTerminal) -> None:
    """Read every byte and remove damaged shards, so that the run makes them again.

    Raises:
        UsageError: the folder holds another data set.
    """
    try:
        manifest = check_build_spec(out, spec)
    except DamagedData as error:
        terminal.say(describe_irreparable(out, error))
        clear_dataset(out)
        return
    if manifest is None:
        _remove_unfinished(out, terminal)
        return
    total = sum(len(split.shards) for split in manifest.splits.values())
    with terminal.progress("verify", total=total, unit="shards") as advance:  # type: ignore[attr-defined]
        findings = verify(out, manifest, deep=False, advance=advance)
    present = {path.name for path in out.glob(SHARDS)}
    listed = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for finding in findings:
        ours = finding.file in present | listed
        advice = "" if ours else "; a repair keeps files of others: move it elsewhere"
        terminal.say(f"{out / finding.file}: {finding.problem}{advice}")
    damaged = {finding.file for finding in findings} & (present | listed)
    if damaged & listed:
        write_build_spec(out / "_work", spec)
        atomic.write_file(out / "_work" / _EXPECTED, manifest.dataset_sha256.encode())
    for name in sorted(damaged):
        remove_shard(out, name)
    if damaged & listed:
        atomic.remove_file(out / NAME)
    else:
        _write_missing(out, manifest, terminal)


def _write_missing(out: Path, manifest: Manifest, terminal: RunTerminal) -> None:
    """Write missing or empty companion files; keep the others, because users edit them."""
    rejects = {"rejects.jsonl": b""} if manifest.photos.rejected == 0 else {}
    for name, content in {**writer.companion_files(manifest), **rejects}.items():
        path = out / name
        if not path.exists() or path.stat().st_size < min(1, len(content)):
            terminal.say(f"{path}: is missing or empty; writing it again")
            atomic.make_folder(path.parent)
            atomic.write_file(path, content)
    if not (out / "rejects.jsonl").exists():
        terminal.say(
            f"{out / 'rejects.jsonl'}: is missing, and only a run over all photos can restore it;"
            " use --overwrite instead of --repair for that"
        )


def _remove_unfinished(out: Path, terminal: RunTerminal) -> None:
    """Remove shards of an unfinished run that differ from their indices, and all spills."""
    for path in sorted(out.glob(SHARDS)):
        try:
            check_shard(out, index.load_npz(index.npz_path(out, path.name)).entry(path.name))
        except (UsrganError, OSError) as error:
            problem = str(error).removeprefix(f"{path}: ")
            terminal.say(f"{path}: {problem}; making it again")
            remove_shard(out, path.name)
    for path in sorted((out / "_work").glob("chunk-*")):
        atomic.remove_file(path)


def is_as_expected(work: Path, manifest: Manifest) -> bool:
    """Whether a repair reproduced the data set; True for any other run."""
    path = work / _EXPECTED
    return not path.exists() or path.read_text() == dataset_digest(manifest.splits)
