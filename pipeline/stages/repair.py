"""A data set that is there: is it whole, is it of these photos, and what of it has to be made again?"""

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
"""Photos that are read and compared at a time."""
_EXPECTED = "expected"
"""In the scratch folder of a repair: the `dataset_sha256` that it has to come to."""


def check_same_photos(out: Location, manifest: Manifest, photos: Sequence[FoundPhoto]) -> None:
    """Check that photos newer than the data set still have the digests that it names.

    Where a store has no modification times, nothing is checked.

    Raises:
        UsageError: naming a photo that was changed.
    """
    written = _write_time_ns(out)
    newer = {photo.name: photo for photo in photos if photo.mtime_ns > written > 0}
    for split in manifest.splits if newer else ():
        reader, places = _patch_positions(out, split, newer)
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            same = list(pool.map(partial(_is_same_photo, reader), places))
        reader.close()
        for (photo, _), unchanged in zip(places, same, strict=True):
            if not unchanged:
                raise UsageError(
                    f"--out {out}: holds patches of {photo.name} as it was before it changed;"
                    " name another folder or add --overwrite"
                )


def _write_time_ns(out: Location) -> int:
    """Return the modification time of the manifest in nanoseconds since 1970; 0 where the store has none."""
    if isinstance(out, Path):
        return (out / NAME).stat().st_mtime_ns
    there = remote.list_files(out).get(NAME)
    return there.modified_ns if there else 0


def _is_same_photo(reader: SplitReader, place: tuple[FoundPhoto, int]) -> bool:
    """Whether a photo has the digest that a pair of it names."""
    photo, position = place
    path = photo.path
    content = remote.read_file(path) if isinstance(path, str) else path.read_bytes()
    return hashlib.sha256(content).hexdigest() == reader[position].info.src_sha256


def _patch_positions(
    out: Location, split: str, photos: dict[str, FoundPhoto]
) -> tuple[SplitReader, list[tuple[FoundPhoto, int]]]:
    """A split, and a pair in it of each of the photos that it has patches of."""
    dataset = open_dataset(out)
    reader, first = dataset.split(split), 0
    found: dict[str, int] = {}
    for table in dataset.indices[split]:
        for number, src in enumerate(table.src.tolist()):
            if src in photos and src not in found:
                found[src] = first + int((table.src_id == number).argmax())
        first += len(table.key)
    return reader, [(photos[src], position) for src, position in found.items()]


def describe_irreparable(out: Path, error: DamagedData) -> str:
    """Return the reason why a data set cannot be repaired: its damaged manifest is the only record of its shards."""
    problem = str(error).removesuffix(f"; {remedy(str(out / NAME))}")
    return f"{problem}; a repair makes all of it again"


def remove_damaged(out: Path, promise: dict[str, Option], watch: RunTerminal) -> None:
    """Read every byte; what is not as promised is removed, so that the run makes it again.

    Raises:
        UsageError: the folder holds another data set.
    """
    try:
        manifest = check_build_spec(out, promise)
    except DamagedData as error:
        watch.say(describe_irreparable(out, error))
        clear_dataset(out)
        return
    if manifest is None:
        _remove_unfinished(out, watch)
        return
    total = sum(len(split.shards) for split in manifest.splits.values())
    with watch.progress("verify", total=total, unit="shards") as advance:  # type: ignore[attr-defined]
        findings = verify(out, manifest, deep=False, advance=advance)
    ours = {path.name for path in out.glob(SHARDS)}
    listed = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for finding in findings:
        mends = finding.file in ours | listed
        fix = "" if mends else "; no repair takes away what is not ours: move it elsewhere"
        watch.say(f"{out / finding.file}: {finding.problem}{fix}")
    damaged = {finding.file for finding in findings} & (ours | listed)
    if damaged & listed:
        write_build_spec(out / "_work", promise)
        atomic.write_file(out / "_work" / _EXPECTED, manifest.dataset_sha256.encode())
    for name in sorted(damaged):
        remove_shard(out, name)
    if damaged & listed:
        atomic.remove_file(out / NAME)
    else:
        _write_missing(out, manifest, watch)


def _write_missing(out: Path, manifest: Manifest, watch: RunTerminal) -> None:
    """Put back what lies beside the shards; what is there stays, for people do edit it."""
    rejects = {"rejects.jsonl": b""} if manifest.photos.rejected == 0 else {}
    for name, content in {**writer.companion_files(manifest), **rejects}.items():
        path = out / name
        if not path.exists() or path.stat().st_size < min(1, len(content)):
            watch.say(f"{path}: is missing or empty; it is written again")
            atomic.make_folder(path.parent)
            atomic.write_file(path, content)
    if not (out / "rejects.jsonl").exists():
        watch.say(
            f"{out / 'rejects.jsonl'}: is missing, and only a look at all photos tells what it said;"
            " add --overwrite instead of --repair to have it"
        )


def _remove_unfinished(out: Path, watch: RunTerminal) -> None:
    """Shards that are not what their index says, and all spills."""
    for path in sorted(out.glob(SHARDS)):
        try:
            check_shard(out, index.load_npz(index.npz_path(out, path.name)).entry(path.name))
        except (UsrganError, OSError) as error:
            problem = str(error).removeprefix(f"{path}: ")
            watch.say(f"{path}: {problem}; it is made again")
            remove_shard(out, path.name)
    for path in sorted((out / "_work").glob("chunk-*")):
        atomic.remove_file(path)


def is_as_expected(work: Path, manifest: Manifest) -> bool:
    """Whether a repair came to what was there before; always true if this is none."""
    path = work / _EXPECTED
    return not path.exists() or path.read_text() == dataset_digest(manifest.splits)
