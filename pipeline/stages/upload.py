"""Upload of a data set to a URL: each shard is made on the local disk, checked, uploaded; the manifest comes last.

Until then a run claims the URL by an object that can be created only once: its build specification.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from pathlib import Path

from pipeline.options import describe_differences
from pipeline.stages.output_folder import BUILD_SPEC, check_same_spec, parse_build_spec, sent_marker
from shards.errors import DamagedData, UsageError
from shards.format import index
from shards.format.manifest import NAME, Manifest, Option, ShardEntry, parse_manifest
from shards.io import atomic, remote
from shards.verify import check_shard


def local_folder(url: str, work_dir: Path | None) -> Path:
    """Return the local folder where the data set of a URL is made, in `work_dir` or the temporary folder."""
    name = f"usrgan-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"
    return (work_dir or Path(tempfile.gettempdir())) / name


def finished_upload(url: str, spec: dict[str, Option]) -> Manifest | None:
    """Return the manifest at the URL if it is the requested data set, or None if the URL has none.

    Raises:
        UsageError: the URL holds another data set.
        DamagedData: the manifest is damaged.
    """
    try:
        content = remote.read_file(remote.child(url, NAME))
    except FileNotFoundError:
        return None
    manifest = parse_manifest(content, remote.child(url, NAME))
    check_same_spec(url, manifest, spec)
    return manifest


def claim_url(work: Path, url: str, spec: dict[str, Option]) -> None:
    """Claim a URL for this data set until it is published; runs of the same data set share the claim.

    Raises:
        UsageError: a run of another data set holds the claim, or has published.
        WriteFailed: the store refused.
    """
    claim = remote.child(url, BUILD_SPEC)
    if _claim_holder(url) is None:  # shards uploaded under an earlier claim may have been replaced
        for marker in sorted(work.glob("sent-*")):
            atomic.remove_file(marker)
        atomic.sync_folder(work)
    try:
        remote.upload_file(work / BUILD_SPEC, claim)
    except UsageError:
        raise _explain_taken(work, url, _claim_holder(url) or b"") from None
    try:
        finished_upload(url, spec)
    except UsageError:
        release_url(url)
        raise


def _claim_holder(url: str) -> bytes | None:
    """Return the build specification that claims a URL, or None."""
    try:
        return remote.read_file(remote.child(url, BUILD_SPEC))
    except FileNotFoundError:
        return None


def _explain_taken(work: Path, url: str, holder: bytes) -> UsageError:
    stored = holder, (work / BUILD_SPEC).read_bytes()
    changed = describe_differences(*map(parse_build_spec, stored))
    return UsageError(
        f"--out {url}: a run of another data set ({changed}) writes there, or was stopped before it finished;"
        " name another folder or add --overwrite"
    )


def _check_claim(work: Path, url: str) -> None:
    """Check that the URL is still claimed by the build specification in `work`, or was published under it.

    This proves that the uploaded shards are unchanged, because replacing one requires removing the claim first.
    Stores keep no SHA-256, so reading all shards back would double the traffic.

    Raises:
        UsageError: another run has claimed the URL, or removed the claim.
    """
    holder, ours = _claim_holder(url), (work / BUILD_SPEC).read_bytes()
    if holder is None and not finished_upload(url, parse_build_spec(ours)):
        raise UsageError(
            f"--out {url}: another run removed the uploaded shards; run the same command again"
        )
    if holder not in (None, ours):
        raise _explain_taken(work, url, holder or b"")


def release_url(url: str) -> None:
    """Remove the claim of a URL."""
    remote.remove_file(remote.child(url, BUILD_SPEC))


def send_shard(out: Path, entry: ShardEntry, url: str) -> None:
    """Check a finished shard again and upload it, its index last; then write its marker.

    Raises:
        DamagedData: the shard was damaged on the local disk.
        UsageError: another run has claimed the URL, or the URL has another shard of this name.
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
    """Whether this shard is uploaded."""
    return sent_marker(out, name).exists()


def publish_dataset(out: Path, url: str, manifest: Manifest) -> None:
    """Check that all shards are at the URL, upload the companion files, then the manifest; release the URL.

    Raises:
        UsageError: another run has claimed the URL, or published another data set there.
        WriteFailed: the store refused.
    """
    _check_claim(out / "_work", url)
    uploaded = remote.list_files(url)
    for split in manifest.splits.values():
        for path in itertools.chain(*(_shard_files(out, shard.name) for shard in split.shards)):
            file = uploaded.get(str(path.relative_to(out)))
            if file is None or file.size != path.stat().st_size:  # a store may lose a file
                remote.upload_file(path, remote.child(url, str(path.relative_to(out))))
    companions = [path for path in out.glob("*.json*") if path.name != NAME]
    for path in sorted([*companions, out / "README.md", *(out / ".nv-meta").iterdir()]):
        remote.upload_file(path, remote.child(url, str(path.relative_to(out))))
    _check_claim(out / "_work", url)
    remote.upload_file(out / NAME, remote.child(url, NAME))
    release_url(url)


def clear_url(url: str) -> None:
    """Remove a data set at a URL and no other files, the claim and the manifest first."""
    release_url(url)
    remote.remove_file(remote.child(url, NAME))
    folders = ("index/", ".nv-meta/")
    suffixes = (".tar", ".tar.idx", ".wids.json")
    for name in remote.list_files(url):
        companion = name in ("README.md", "rejects.jsonl", BUILD_SPEC)
        if companion or name.startswith(folders) or ("/" not in name and name.endswith(suffixes)):
            remote.remove_file(remote.child(url, name))
