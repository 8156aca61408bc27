"""C kernels: compiled on first use on each machine and kept in the user's cache.

The wheels contain no machine code. Every C kernel has a numpy fallback, which runs without a compiler
or on another processor; the reason can be shown.
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
    """This machine has no such kernel; the message says why."""


_compile_lock = threading.Lock()
_TIMEOUT_SECONDS = 120
"""Time limit of one compiler call, in seconds."""


def load(source: Path, *flags: str) -> ctypes.CDLL:
    """Compile a C file and return its functions; it may include headers of its own folder.

    Raises:
        KernelUnavailable: no compiler is installed, or the file does not compile or load.
    """
    with _compile_lock:
        return _load_cached(source, *flags)


@cache
def _load_cached(source: Path, *flags: str) -> ctypes.CDLL:
    try:
        compiler = shlex.split(os.environ.get("CC") or "gcc")
    except ValueError as error:
        raise KernelUnavailable(f"$CC: is not a valid command ({error})") from None
    if not compiler or shutil.which(compiler[0]) is None:
        raise KernelUnavailable("no C compiler found; install gcc, or name one in $CC")
    try:
        content = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
        built_by = (*compiler, platform.machine(), *_FLAGS, *flags)
        key = hashlib.sha256(b"\0".join([*content, *map(os.fsencode, built_by)]))
        cached = user_cache_path(f"{source.stem}-{key.hexdigest()[:16]}.so")
        if cached is not None and _is_loadable(cached):
            with contextlib.suppress(OSError):  # the folder may forbid execution
                return ctypes.CDLL(str(cached))
        with tempfile.TemporaryDirectory() as folder:
            compiled = _compile(compiler, source, flags, Path(folder))
            if cached is not None:
                with contextlib.suppress(WriteFailed, OSError):  # then every run compiles again
                    atomic.make_folder(cached.parent)
                    library = compiled.read_bytes()
                    atomic.write_file(cached, library + hashlib.sha256(library).digest())
                    return ctypes.CDLL(str(cached))
            return ctypes.CDLL(str(compiled))
    except (OSError, UnicodeError) as error:  # no temporary folder, or a missing library
        raise KernelUnavailable(f"{source.name} cannot be compiled and loaded ({error})") from None


def _is_loadable(library: Path) -> bool:
    """Whether a cached library ends with its digest; loading a damaged one would crash the process."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _compile(compiler: list[str], source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """Compile to a shared library; link without `flags`, so that it uses the libraries of this process."""
    objects, library = folder / "kernels.o", folder / "kernels.so"
    for arguments in (
        [*_FLAGS, *flags, "-c", str(source), "-o", str(objects)],
        ["-shared", str(objects), "-o", str(library)],
    ):
        try:
            run = subprocess.run(
                [*compiler, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
                text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise KernelUnavailable(
                f"{compiler[0]} needs more than {_TIMEOUT_SECONDS} s for {source.name}"
            ) from None
        if run.returncode:
            lines = run.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "rror" in line), lines[-1])
            raise KernelUnavailable(
                f"{compiler[0]} cannot compile {source.name} ({reason.strip()})"
            )
    return library
