"""The output folder: empty, unfinished, finished, or somebody else's; and what it promises."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.options import Options, described, differences, libraries
from pipeline.scan import Scan, listing_sha256
from shards import files, writer
from shards.errors import DamagedData, UsageError
from shards.manifest import NAME, Manifest, Option, load_manifest

SHARDS = "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to, or whose own files a data set would replace.

    Raises:
        UsageError: naming the file.
    """
    files.check_folder(out, option="--out")
    if not out.is_dir() or (out / NAME).exists() or (out / "_work").is_dir():
        return
    ours = ("README.md", "rejects.jsonl", "index", ".nv-meta", "*.wids.json", "*.tar", "*.tar.idx")
    for pattern in ours:
        for path in out.glob(pattern):
            raise UsageError(
                f"--out {out}: holds {path.name}, which is not of a data set; name an empty folder"
            )


def promise_of(options: Options, found: Scan) -> dict[str, Option]:
    """All that the bytes depend on, flat, to compare a folder with this call."""
    return {
        **described(options),
        **{f"library {name}": version for name, version in libraries().items()},
        "photos": listing_sha256(found),
    }


def check_promise(out: Path, promise: dict[str, Option]) -> Manifest | None:
    """The manifest of a finished data set, None where there is none; nothing is written.

    Raises:
        UsageError: the folder holds another data set, finished or not, than is asked for.
    """
    if not (out / NAME).exists():
        _check_unfinished(out / "_work", promise)
        return None
    manifest = load_manifest(out)
    check_same(str(out), manifest, promise)
    return manifest


def check_same(out: str, manifest: Manifest, promise: dict[str, Option]) -> None:
    """A finished data set is the one that is asked for.

    Raises:
        UsageError: it is another one; with what differs.
    """
    before = {
        **manifest.options,
        **{f"library {name}": version for name, version in manifest.libraries.items()},
        "photos": manifest.photos.listing_sha256,
    }
    if changed := differences(before, promise):
        raise UsageError(
            f"--out {out}: holds another data set ({changed}); name another folder or add --overwrite"
        )


def _check_unfinished(work: Path, promise: dict[str, Option]) -> None:
    """Photos may have changed since: what was cut of them is then cut again."""
    path = work / "promise.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        before = {}
    if changed := differences({**before, "photos": promise["photos"]}, promise):
        raise UsageError(
            f"--out {work.parent}: an unfinished run differs ({changed}); repeat its options or add --overwrite"
        )


def finished_dataset(out: Path, promise: dict[str, Option]) -> Manifest | None:
    """The manifest of this very data set, or None if it is not there yet.

    Raises:
        UsageError: it is another data set.
        DamagedData: a shard is missing or cut off.
    """
    manifest = check_promise(out, promise)
    for split in manifest.splits.values() if manifest else ():
        for shard in split.shards:
            if writer.finished_shard(out, shard.name) != shard:
                raise DamagedData(
                    f"{out / shard.name}: it or its index is missing or cut off; run the same command with --repair"
                )
    return manifest


def begin_work(work: Path, promise: dict[str, Option]) -> None:
    """Start or go on: the scratch folder is of one promise.

    Raises:
        UsageError: it is of another one.
    """
    _check_unfinished(work, promise)
    files.make_folder(work)
    sweep(work.parent)
    path = work / "promise.json"
    if not path.exists():
        files.write_file(path, json.dumps(promise, indent=2, sort_keys=True).encode())


def sweep(out: Path) -> None:
    """Remove the temporaries of processes that were killed."""
    for folder in (out / "_work", out, out / "index", out / ".nv-meta"):
        files.sweep_temps(folder)


def clear_dataset(out: Path) -> None:
    """Remove a data set, its manifest first, and nothing else."""
    files.remove(out / NAME)
    for pattern in (SHARDS + "*", "*.wids.json"):
        for path in sorted(out.glob(pattern)):
            files.remove(path)
    for name in ("index", ".nv-meta", "rejects.jsonl", "README.md", "_work"):
        files.remove(out / name)
