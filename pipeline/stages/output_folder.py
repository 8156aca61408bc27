"""The output folder: empty, unfinished, finished, or foreign; and its build specification."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pipeline.options import Options, describe_options, differences, library_versions
from pipeline.photos.scan import Scan, listing_sha256
from shards import writer
from shards.errors import DamagedData, UsageError
from shards.format import index
from shards.format.manifest import NAME, Manifest, Option, load_manifest
from shards.io import atomic
from shards.version import __version__

_STEM = "*-[0-9][0-9][0-9][0-9][0-9][0-9]"
SHARDS = f"{_STEM}.tar"
BUILD_SPEC = "promise.json"
"""In the scratch folder: what the run was asked for."""
VERSION = "usrgan"
"""In a promise: which usrgan; one run is of one version, a finished data set may be of any."""


def check_output_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to, or whose own files a data set would replace.

    Raises:
        UsageError: naming the file.
    """
    atomic.check_folder(out, option="--out")
    if not out.is_dir() or (out / NAME).exists() or (out / "_work").is_dir():
        return
    ours = ("README.md", "rejects.jsonl", "index", ".nv-meta", "*.wids.json", "*.tar", "*.tar.idx")
    for pattern in ours:
        for path in out.glob(pattern):
            raise UsageError(
                f"--out {out}: holds {path.name}, which is not of a data set; name an empty folder"
            )


def build_spec(options: Options, found: Scan) -> dict[str, Option]:
    """All that the bytes depend on, flat, to compare a folder with this call."""
    return {
        **describe_options(options),
        **{f"library {name}": version for name, version in library_versions().items()},
        VERSION: __version__,
        "photos": listing_sha256(found),
    }


def parse_build_spec(content: bytes) -> dict[str, Option]:
    """Return a stored build specification; empty if it is damaged."""
    try:
        return msgspec.json.decode(content, type=dict[str, Option])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def check_build_spec(out: Path, promise: dict[str, Option]) -> Manifest | None:
    """The manifest of a finished data set, None where there is none; nothing is written.

    Raises:
        UsageError: the folder holds another data set, finished or not, than is asked for.
    """
    if not (out / NAME).exists():
        _check_unfinished(out / "_work", promise)
        return None
    manifest = load_manifest(out)
    check_same_spec(str(out), manifest, promise)
    return manifest


def check_same_spec(out: str, manifest: Manifest, promise: dict[str, Option]) -> None:
    """A finished data set is the one that is asked for; whichever version has made it, it is whole.

    Raises:
        UsageError: it is another one; with what differs.
    """
    before = {
        **manifest.options,
        **{f"library {name}": version for name, version in manifest.libraries.items()},
        VERSION: promise[VERSION],
        "photos": manifest.photos.listing_sha256,
    }
    if changed := differences(before, promise):
        raise UsageError(
            f"--out {out}: holds another data set ({changed}); name another folder or add --overwrite"
        )


def _check_unfinished(work: Path, promise: dict[str, Option]) -> None:
    """Photos may have changed since: what was cut of them is then cut again."""
    path = work / BUILD_SPEC
    if not path.exists():
        return
    before = parse_build_spec(path.read_bytes())
    if changed := differences({**before, "photos": promise["photos"]}, promise):
        raise UsageError(
            f"--out {work.parent}: an unfinished run differs ({changed});"
            " repeat its options with the same versions, or add --overwrite"
        )


def finished_dataset(out: Path, promise: dict[str, Option]) -> Manifest | None:
    """The manifest of this very data set, or None if it is not there yet.

    Raises:
        UsageError: it is another data set.
        DamagedData: a shard is missing or cut off.
    """
    manifest = check_build_spec(out, promise)
    for split in manifest.splits.values() if manifest else ():
        for shard in split.shards:
            if writer.find_finished_shard(out, shard.name) != shard:
                raise DamagedData(
                    f"{out / shard.name}: it or its index is missing or cut off; run the same command with --repair"
                )
    return manifest


def begin_work(work: Path, promise: dict[str, Option]) -> None:
    """Start or resume: scratch folder and shards belong to one build specification.

    Raises:
        UsageError: they belong to another one.
    """
    _check_unfinished(work, promise)
    sweep_work(work.parent)
    if not (work / BUILD_SPEC).exists():  # what lies there is of nobody
        remove_shards(work.parent)
        for path in sorted(work.glob("*")):
            atomic.remove_file(path)
        write_build_spec(work, promise)


def write_build_spec(work: Path, promise: dict[str, Option]) -> None:
    """Store the build specification of the scratch folder and of the shards beside it."""
    atomic.make_folder(work)
    atomic.write_file(work / BUILD_SPEC, json.dumps(promise, indent=2, sort_keys=True).encode())


def sweep_work(out: Path) -> None:
    """Remove the temporaries of processes that were killed."""
    for folder in (out / "_work", out, out / "index", out / ".nv-meta"):
        atomic.sweep_temps(folder)


def clear_dataset(out: Path) -> None:
    """Remove a data set, its manifest first, and nothing else; the scratch folder stays to the end.

    As long as that is there the folder is known as ours, so that a killed call can be repeated.
    """
    atomic.make_folder(out / "_work")
    atomic.remove_file(out / NAME)
    remove_shards(out)
    for path in sorted(out.glob("*.wids.json")):
        atomic.remove_file(path)
    for name in ("index", ".nv-meta", "rejects.jsonl", "README.md", "_work"):
        atomic.remove_file(out / name)


def remove_shards(out: Path) -> None:
    """Remove all shards of an unfinished data set, and what is left of any."""
    patterns = (SHARDS, f"{SHARDS}.idx", f"index/{_STEM}.npz")
    found = [path.name for pattern in patterns for path in out.glob(pattern)]
    stems = {name.removesuffix(".idx").removesuffix(".tar").removesuffix(".npz") for name in found}
    for stem in sorted(stems):
        remove_shard(out, f"{stem}.tar")


def remove_shard(out: Path, name: str) -> None:
    """Remove a shard; what says that it was sent or that it is finished goes first, for good."""
    for path in (sent_marker(out, name), index.npz_path(out, name)):
        if path.exists():
            atomic.remove_file(path)
            atomic.sync_folder(path.parent)
    for path in (index.idx_path(out, name), out / name):
        atomic.remove_file(path)


def sent_marker(out: Path, name: str) -> Path:
    """The file that says that a shard is at its URL."""
    return out / "_work" / f"sent-{name}"
