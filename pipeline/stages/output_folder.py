"""The output folder: its state (empty, unfinished, finished, foreign) and its build specification."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pipeline.options import Options, describe_differences, describe_options, library_versions
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
"""Scratch file with the build specification of the run; at a URL it marks the claim of a run."""
VERSION = "usrgan"
"""Key of the version of usrgan in a build specification; a finished data set may have any version."""


def check_output_folder(out: Path) -> None:
    """Check that the folder is writable and has no foreign files that a data set would overwrite.

    Raises:
        UsageError: the folder has such a file; names it.
        WriteFailed: the folder is read-only.
    """
    atomic.check_folder(out, option="--out")
    if not out.is_dir() or (out / NAME).exists() or (out / "_work").is_dir():
        return
    ours = ("README.md", "rejects.jsonl", "index", ".nv-meta", "*.wids.json", "*.tar", "*.tar.idx")
    for pattern in ours:
        for path in out.glob(pattern):
            raise UsageError(
                f"--out {out}: contains {path.name}, but no data set; name an empty folder"
            )


def build_spec(options: Options, scan: Scan) -> dict[str, Option]:
    """Return everything that decides the bytes, as one flat dictionary, to compare runs."""
    return {
        **describe_options(options),
        **{f"library {name}": version for name, version in library_versions().items()},
        VERSION: __version__,
        "photos": listing_sha256(scan),
    }


def parse_build_spec(content: bytes) -> dict[str, Option]:
    """Return a stored build specification; empty if it is damaged."""
    try:
        return msgspec.json.decode(content, type=dict[str, Option])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def check_build_spec(out: Path, spec: dict[str, Option]) -> Manifest | None:
    """Return the manifest of the finished data set in the folder, or None; write nothing.

    Raises:
        UsageError: the folder holds another data set, finished or not.
    """
    if not (out / NAME).exists():
        _check_unfinished(out / "_work", spec)
        return None
    manifest = load_manifest(out)
    check_same_spec(str(out), manifest, spec)
    return manifest


def check_same_spec(out: str, manifest: Manifest, spec: dict[str, Option]) -> None:
    """Check that a finished data set is the requested one, whichever version of usrgan made it.

    Raises:
        UsageError: it is another one; names the describe_differences.
    """
    before = {
        **manifest.options,
        **{f"library {name}": version for name, version in manifest.libraries.items()},
        VERSION: spec[VERSION],
        "photos": manifest.photos.listing_sha256,
    }
    if changed := describe_differences(before, spec):
        raise UsageError(
            f"--out {out}: holds another data set ({changed}); name another folder or add --overwrite"
        )


def _check_unfinished(work: Path, spec: dict[str, Option]) -> None:
    """Refuse an unfinished run of another data set; photos may differ, because they are extracted again."""
    path = work / BUILD_SPEC
    if not path.exists():
        return
    before = parse_build_spec(path.read_bytes())
    if changed := describe_differences({**before, "photos": spec["photos"]}, spec):
        raise UsageError(
            f"--out {work.parent}: an unfinished run differs ({changed});"
            " repeat its options with the same versions, or add --overwrite"
        )


def finished_dataset(out: Path, spec: dict[str, Option]) -> Manifest | None:
    """Return the manifest of the requested data set, or None if it is not finished.

    Raises:
        UsageError: the folder holds another data set.
        DamagedData: a shard or its index is missing or truncated.
    """
    manifest = check_build_spec(out, spec)
    for split in manifest.splits.values() if manifest else ():
        for shard in split.shards:
            if writer.find_finished_shard(out, shard.name) != shard:
                raise DamagedData(
                    f"{out / shard.name}: it or its index is missing or truncated; run the same command with --repair"
                )
    return manifest


def begin_work(work: Path, spec: dict[str, Option]) -> None:
    """Start or resume a run: scratch folder and shards must belong to this build specification.

    Raises:
        UsageError: they belong to another one.
    """
    _check_unfinished(work, spec)
    sweep_work(work.parent)
    if not (work / BUILD_SPEC).exists():  # the remaining files belong to no run
        remove_shards(work.parent)
        for path in sorted(work.glob("*")):
            atomic.remove_file(path)
        write_build_spec(work, spec)


def write_build_spec(work: Path, spec: dict[str, Option]) -> None:
    """Write the build specification of the scratch folder and the shards."""
    atomic.make_folder(work)
    atomic.write_file(work / BUILD_SPEC, json.dumps(spec, indent=2, sort_keys=True).encode())


def sweep_work(out: Path) -> None:
    """Remove the temporary files of killed processes."""
    for folder in (out / "_work", out, out / "index", out / ".nv-meta"):
        atomic.sweep_temps(folder)


def clear_dataset(out: Path) -> None:
    """Remove a data set and no other files: the manifest first, the scratch folder last.

    The scratch folder marks the output folder as ours, so that a killed call can be repeated.
    """
    atomic.make_folder(out / "_work")
    atomic.remove_file(out / NAME)
    remove_shards(out)
    for path in sorted(out.glob("*.wids.json")):
        atomic.remove_file(path)
    for name in ("index", ".nv-meta", "rejects.jsonl", "README.md", "_work"):
        atomic.remove_file(out / name)


def remove_shards(out: Path) -> None:
    """Remove all shards, including incomplete ones, with their indices."""
    patterns = (SHARDS, f"{SHARDS}.idx", f"index/{_STEM}.npz")
    names = [path.name for pattern in patterns for path in out.glob(pattern)]
    stems = {name.removesuffix(".idx").removesuffix(".tar").removesuffix(".npz") for name in names}
    for stem in sorted(stems):
        remove_shard(out, f"{stem}.tar")


def remove_shard(out: Path, name: str) -> None:
    """Remove a shard; the markers that it is uploaded and finished are durably removed first."""
    for path in (sent_marker(out, name), index.npz_path(out, name)):
        if path.exists():
            atomic.remove_file(path)
            atomic.sync_folder(path.parent)
    for path in (index.idx_path(out, name), out / name):
        atomic.remove_file(path)


def sent_marker(out: Path, name: str) -> Path:
    """Return the path of the marker that a shard is uploaded."""
    return out / "_work" / f"sent-{name}"
