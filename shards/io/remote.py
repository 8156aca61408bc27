"""Folders that are URLs (s3://, gs://, hf://, memory:// …), by fsspec: listed, read, and filled.

An object is sent whole from a finished local file and never replaces one: where it is there already,
its bytes must be the same. So two runs that write to one URL cannot mix their shards, and a run that
was killed in the middle of an upload sends again what is not there.
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
"""Package to install for a protocol; our own extra where one exists."""
_PART = 2**22


class RemoteFile(NamedTuple):
    """A file below a URL."""

    size: int
    changed: int
    """Modification time in nanoseconds since 1970; 0 where the store has none."""


def is_url(text: str) -> bool:
    """Whether this names a store and no local folder."""
    return "://" in text


def child(url: str, name: str) -> str:
    """The URL of a file below a URL."""
    return f"{url.rstrip('/')}/{name}"


def list_files(url: str) -> dict[str, RemoteFile]:
    """All files below a URL, by their paths below it.

    Raises:
        UsageError: the store is not known, holds nothing there, or a file of this very name.
    """
    with _wrap_errors(url, reading=True):
        system, root = _open_filesystem(url)
        # a store's listing may be cached, and photos may have changed since
        system.invalidate_cache()
        try:
            found = system.find(root, detail=True)
        except FileNotFoundError:
            raise UsageError(f"{url}: there is nothing there; check the URL") from None
    prefix = root.rstrip("/") + "/"
    if list(found) == [prefix[:-1]]:
        raise UsageError(f"{url}: is a file; name the folder that it is in")
    return {
        path.removeprefix(prefix): RemoteFile(int(info["size"]), _change_marker(info))
        for path, info in sorted(found.items())
    }


def read_file(url: str) -> bytes:
    """The bytes of one file.

    Raises:
        FileNotFoundError: there is no such file.
        UsrganError: the store does not answer.
    """
    with _wrap_errors(url, reading=True):
        system, path = _open_filesystem(url)
        content: bytes = system.cat_file(path)
        return content


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of one file, by one request; fewer where the file ends before.

    Raises:
        FileNotFoundError: there is no such file.
        UsrganError: the store does not answer.
        UsageError: it sends other bytes than it was asked for.
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
    """One file from beginning to end, in parts.

    Raises:
        FileNotFoundError: there is no such file.
        UsrganError: the store does not answer.
    """
    with _wrap_errors(url, reading=True):
        system, path = _open_filesystem(url)
        with system.open(path, "rb") as stream:
            while part := stream.read(_PART):
                yield part


def upload_file(local: Path, url: str) -> None:
    """Put a finished file at a URL, unless it is there already.

    Raises:
        UsageError: another file is there.
        WriteFailed: the store refused.
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
                f"{url}: another run has put something else there; name another folder or add --overwrite"
            )


def remove_file(url: str) -> None:
    """Delete one file if it is there.

    Raises:
        WriteFailed: the store refused.
    """
    with _wrap_errors(url, reading=False), contextlib.suppress(FileNotFoundError):
        system, path = _open_filesystem(url)
        count_operation("delete", Path(path))
        system.rm_file(path)


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # only where a URL is named

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
    """A store's own errors in one line."""
    try:
        yield
    except UsrganError:
        raise
    except Exception as error:  # each store brings a family of its own
        if reading and isinstance(error, FileNotFoundError):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        kind = UsrganError if reading else WriteFailed
        verb = "read" if reading else "written"
        raise kind(
            f"{url}: cannot be {verb} ({said}); check the URL, the credentials and the network"
        ) from error


def _change_marker(info: dict[str, Any]) -> int:
    """When a file was last written; stores call it differently."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e9)
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0
