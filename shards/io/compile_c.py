"""C kernels, compiled once on each machine on first use and kept in the user's cache.

The wheels contain no machine code. Every C kernel has a fallback in numpy: without a compiler, or on another
processor, the fallback runs and the reason can be shown.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from shards.errors import UsrganError, WriteFailed
from shards.io import atomic
from shards.io.cache_dir import user_cache_path

_FLAGS = ("-O3", "-fPIC")


class KernelUnavailable(UsrganError):
    """This machine cannot have a kernel; says why."""


_compile_lock = threading.Lock()
_TIMEOUT_SECONDS = 120
"""Time limit of the compiler, in seconds."""


def load(source: Path, *flags: str) -> ctypes.CDLL:
    """Return the functions of a C file; it may include headers of its folder.

    Raises:
        KernelUnavailable: no compiler compiles it.
    """
    with _compile_lock:
        return _load_cached(source, *flags)


@cache
def _load_cached(source: Path, *flags: str) -> ctypes.CDLL:
    try:
        compiler = shlex.split(os.environ.get("CC") or "gcc")
    except ValueError as error:
        raise KernelUnavailable(f"$CC cannot be understood ({error})") from None
    if not compiler or shutil.which(compiler[0]) is None:
        raise KernelUnavailable("there is no C compiler; install gcc, or name one in $CC")
    try:
        content = [each.read_bytes() for each in (source, *sorted(source.parent.glob("*.h")))]
        built_by = (*compiler, platform.machine(), *_FLAGS, *flags)
        key = hashlib.sha256(b"\0".join([*content, *map(os.fsencode, built_by)]))
        place = user_cache_path(f"{source.stem}-{key.hexdigest()[:16]}.so")
        if place is not None and _is_loadable(place):
            with contextlib.suppress(OSError):  # a folder from which nothing may be run
                return ctypes.CDLL(str(place))
        with tempfile.TemporaryDirectory() as folder:
            made = _compile(compiler, source, flags, Path(folder))
            if place is not None:
                with contextlib.suppress(WriteFailed, OSError):  # then it is compiled in every run
                    atomic.make_folder(place.parent)
                    library = made.read_bytes()
                    atomic.write_file(place, library + hashlib.sha256(library).digest())
                    return ctypes.CDLL(str(place))
            return ctypes.CDLL(str(made))
    except (OSError, UnicodeError) as error:  # no place for files, or a library is not there
        raise KernelUnavailable(f"{source.name} cannot be compiled and loaded ({error})") from None


def _is_loadable(place: Path) -> bool:
    """Whether a kept library ends with its digest: a damaged one would end the process."""
    try:
        content = place.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _compile(compiler: list[str], source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """The shared library; linked without `flags`, so that a library it needs is the one of this process."""
    parts, whole = folder / "kernels.o", folder / "kernels.so"
    for arguments in (
        [*_FLAGS, *flags, "-c", str(source), "-o", str(parts)],
        ["-shared", str(parts), "-o", str(whole)],
    ):
        try:
            ended = subprocess.run(
                [*compiler, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
                text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise KernelUnavailable(f"{compiler[0]} does not end on {source.name}") from None
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "rror" in line), lines[-1])
            raise KernelUnavailable(
                f"{compiler[0]} cannot compile {source.name} ({reason.strip()})"
            )
    return whole
