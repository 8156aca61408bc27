"""Folders at URLs (s3://, gs://, hf://, memory:// …) through fsspec: list, read and upload.

A file is uploaded whole from a finished local file and never replaces another: an existing object must
have the same bytes. So two runs that write to one URL cannot mix their shards, and a run that was killed
during an upload sends only what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UsageError, UsrganError, WriteFailed
from shards.io.atomic import count_operation

Location = Path | str
"""A local folder, or a URL."""
_EXTRAS = {
    "s3": "'usrgan[s3]'", "s3a": "'usrgan[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs",
    "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
"""pip requirement for each protocol; an extra of usrgan where one exists."""
_PART = 2**22


class RemoteFile(NamedTuple):
    """A file below a URL."""

    size: int
    modified_ns: int
    """Modification time in nanoseconds since 1970; 0 where the store has none."""


def is_url(text: str) -> bool:
    """Whether a location is the URL of a store, not a local folder."""
    return "://" in text


def child(url: str, name: str) -> str:
    """Return the URL of a file in the folder `url`."""
    return f"{url.rstrip('/')}/{name}"


def list_files(url: str) -> dict[str, RemoteFile]:
    """Return all files below a URL, keyed by their relative paths.

    Raises:
        UsageError: the protocol is unknown, the URL is empty, or it is a file.
        UsrganError: the store does not answer.
    """
    with _wrap_errors(url, reading=True):
        system, root = _open_filesystem(url)
        # fsspec caches listings, but photos may have changed since
        system.invalidate_cache()
        try:
            files = system.find(root, detail=True)
        except FileNotFoundError:
            raise UsageError(f"{url}: does not exist; check the URL") from None
    prefix = root.rstrip("/") + "/"
    if list(files) == [prefix[:-1]]:
        raise UsageError(f"{url}: is a file; name its folder")
    return {
        path.removeprefix(prefix): RemoteFile(int(info["size"]), _modified_ns(info))
        for path, info in sorted(files.items())
    }


def read_file(url: str) -> bytes:
    """Return the bytes of one file.

    Raises:
        FileNotFoundError: the file does not exist.
        UsrganError: the store does not answer.
    """
    with _wrap_errors(url, reading=True):
        system, path = _open_filesystem(url)
        content: bytes = system.cat_file(path)
        return content


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return bytes [start, stop) of one file in one request; fewer at the end of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        UsrganError: the store does not answer.
        UsageError: the server ignores ranges.
    """
    with _wrap_errors(url, reading=True):
        system, path = _open_filesystem(url)
        content: bytes = system.cat_file(path, start=start, end=stop)
    if len(content) > stop - start:
        raise UsageError(
            f"{url}: the server sends whole files instead of ranges; copy the shards to a local folder"
        )
    return content


def read_parts(url: str) -> Iterator[bytes]:
    """Yield a file from beginning to end, in parts of at most 4 MiB.

    Raises:
        FileNotFoundError: the file does not exist.
        UsrganError: the store does not answer.
    """
    with _wrap_errors(url, reading=True):
        system, path = _open_filesystem(url)
        with system.open(path, "rb") as stream:
            while part := stream.read(_PART):
                yield part


def upload_file(local: Path, url: str) -> None:
    """Upload a finished file, unless the same bytes are already at the URL.

    Raises:
        UsageError: the URL holds different bytes.
        WriteFailed: the store refused the upload.
    """
    with _wrap_errors(url, reading=False):
        system, path = _open_filesystem(url)
        count_operation("put", local)
        if not system.exists(path):
            with contextlib.suppress(FileExistsError):
                system.put_file(str(local), path, mode="create")
                return
        system.invalidate_cache()
        digest = hashlib.sha256()
        for part in read_parts(url):
            digest.update(part)
        if digest.digest() != hashlib.sha256(local.read_bytes()).digest():
            raise UsageError(
                f"{url}: another run wrote different bytes there; name another folder or add --overwrite"
            )


def remove_file(url: str) -> None:
    """Delete one file if it exists.

    Raises:
        WriteFailed: the store refused the deletion.
    """
    with _wrap_errors(url, reading=False), contextlib.suppress(FileNotFoundError):
        system, path = _open_filesystem(url)
        count_operation("delete", Path(path))
        system.rm_file(path)


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # slow, and needed only for URLs

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install {extra}" if extra else "use s3://, gs://, hf:// or a local folder"
        raise UsageError(f"{url}: {protocol}:// cannot be opened ({error}); {fix}") from None
    return system, path


@contextlib.contextmanager
def _wrap_errors(url: str, *, reading: bool) -> Iterator[None]:
    """Turn the exceptions of a store into one-line errors of ours."""
    try:
        yield
    except UsrganError:
        raise
    except Exception as error:  # every store has its own exception classes
        if reading and isinstance(error, FileNotFoundError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = UsrganError if reading else WriteFailed
        verb = "read" if reading else "written"
        raise kind(
            f"{url}: cannot be {verb} ({reason}); check the URL, the credentials and the network"
        ) from error


def _modified_ns(info: dict[str, Any]) -> int:
    """Return the modification time in nanoseconds since 1970; every store names that field differently."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e9)
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0
