"""A data set at a URL: shards are made on local disk, checked, sent whole; the manifest comes last.

From its start until then a run holds the URL by an object that can be created once, its promise.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from pathlib import Path

from pipeline.options import differences
from pipeline.stages.output_folder import BUILD_SPEC, check_same_spec, parse_build_spec, sent_marker
from shards.errors import DamagedData, UsageError
from shards.format import index
from shards.format.manifest import NAME, Manifest, Option, ShardEntry, parse_manifest
from shards.io import atomic, remote
from shards.verify import check_shard


def local_folder(url: str, work_dir: Path | None) -> Path:
    """Where the data set of a URL is made: below `work_dir`, or the machine's folder for such files."""
    name = f"usrgan-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"
    return (work_dir or Path(tempfile.gettempdir())) / name


def finished_upload(url: str, promise: dict[str, Option]) -> Manifest | None:
    """The manifest at the URL if it is of this very data set, None if there is none.

    Raises:
        UsageError: another data set is there.
        DamagedData: the manifest is damaged.
    """
    try:
        content = remote.read_file(remote.child(url, NAME))
    except FileNotFoundError:
        return None
    manifest = parse_manifest(content, remote.child(url, NAME))
    check_same_spec(url, manifest, promise)
    return manifest


def claim_url(work: Path, url: str, promise: dict[str, Option]) -> None:
    """Take a URL for this data set until it is published; runs of the same data set share it.

    Raises:
        UsageError: a run of another data set has it, or has published meanwhile.
        WriteFailed: the store refused.
    """
    place = remote.child(url, BUILD_SPEC)
    if _claim_holder(url) is None:  # what was sent under an earlier claim may be replaced by now
        for marker in sorted(work.glob("sent-*")):
            atomic.remove_file(marker)
        atomic.sync_folder(work)
    try:
        remote.upload_file(work / BUILD_SPEC, place)
    except UsageError:
        raise _explain_taken(work, url, _claim_holder(url) or b"") from None
    try:
        finished_upload(url, promise)
    except UsageError:
        release_url(url)
        raise


def _claim_holder(url: str) -> bytes | None:
    """The promise that holds a URL, None if there is none."""
    try:
        return remote.read_file(remote.child(url, BUILD_SPEC))
    except FileNotFoundError:
        return None


def _explain_taken(work: Path, url: str, holder: bytes) -> UsageError:
    stored = holder, (work / BUILD_SPEC).read_bytes()
    changed = differences(*(parse_build_spec(each) for each in stored))
    return UsageError(
        f"--out {url}: a run of another data set ({changed}) writes there, or was stopped;"
        " name another folder or add --overwrite"
    )


def _check_claim(work: Path, url: str) -> None:
    """The URL is still held by the promise in `work`, or a run that shared it has published.

    This is enough to know the shards there: only who takes the claim away first may replace one, and
    a store keeps no digest of ours, so to read them all back would double the traffic.

    Raises:
        UsageError: another run has taken the URL.
    """
    holder, ours = _claim_holder(url), (work / BUILD_SPEC).read_bytes()
    if holder is None and not finished_upload(url, parse_build_spec(ours)):
        raise UsageError(
            f"--out {url}: another run has removed what was sent there; run the same command again"
        )
    if holder not in (None, ours):
        raise _explain_taken(work, url, holder or b"")


def release_url(url: str) -> None:
    """Give a URL back: what is there is published."""
    remote.remove_file(remote.child(url, BUILD_SPEC))


def send_shard(out: Path, entry: ShardEntry, url: str) -> None:
    """Check a finished shard once more and send it, its index last; a marker says that it is there.

    Raises:
        DamagedData: it rotted on the local disk.
        UsageError: another run has taken the URL, or another shard of that name is there.
        WriteFailed: the store refused.
    """
    try:
        check_shard(out, entry)
    except DamagedData as error:
        path = out / entry.name
        problem = str(error).removeprefix(f"{path}: ")
        raise DamagedData(f"{path}: {problem}; run the same command with --repair") from None
    _check_claim(out / "_work", url)
    for path in _shard_files(out, entry.name):
        remote.upload_file(path, remote.child(url, str(path.relative_to(out))))
    atomic.write_file(sent_marker(out, entry.name), b"")


def _shard_files(out: Path, name: str) -> tuple[Path, Path, Path]:
    return out / name, index.idx_path(out, name), index.npz_path(out, name)


def is_sent(out: Path, name: str) -> bool:
    """Whether an earlier run has sent this shard."""
    return sent_marker(out, name).exists()


def publish_dataset(out: Path, url: str, manifest: Manifest) -> None:
    """Look whether all shards are at the URL, send what lies beside them, then the manifest; release the URL.

    Raises:
        UsageError: another run has taken the URL, or has published another data set there.
        WriteFailed: the store refused.
    """
    _check_claim(out / "_work", url)
    there = remote.list_files(url)
    for split in manifest.splits.values():
        for path in itertools.chain(*(_shard_files(out, shard.name) for shard in split.shards)):
            found = there.get(str(path.relative_to(out)))
            if found is None or found.size != path.stat().st_size:  # a store may lose what it took
                remote.upload_file(path, remote.child(url, str(path.relative_to(out))))
    beside = [path for path in out.glob("*.json*") if path.name != NAME]
    for path in sorted([*beside, out / "README.md", *(out / ".nv-meta").iterdir()]):
        remote.upload_file(path, remote.child(url, str(path.relative_to(out))))
    _check_claim(out / "_work", url)
    remote.upload_file(out / NAME, remote.child(url, NAME))
    release_url(url)


def clear_url(url: str) -> None:
    """Remove a data set at a URL, a run's claim and the manifest first, and nothing else."""
    release_url(url)
    remote.remove_file(remote.child(url, NAME))
    folders = ("index/", ".nv-meta/")
    suffixes = (".tar", ".tar.idx", ".wids.json")
    for name in remote.list_files(url):
        beside = name in ("README.md", "rejects.jsonl", BUILD_SPEC)
        if beside or name.startswith(folders) or ("/" not in name and name.endswith(suffixes)):
            remote.remove_file(remote.child(url, name))
