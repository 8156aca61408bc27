"""C compiled where it is used: once for a machine, and kept in a cache.

No wheel of ours has machine code in it. What has a kernel in C has a way without, so a machine that cannot
have it (no compiler, another processor) goes on, and can be told why.
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
from functools import cache
from pathlib import Path

from shards import files
from shards.errors import UsrganError, WriteFailed
from shards.home import kept

_FLAGS = ("-O3", "-fPIC")


class NotHere(UsrganError):
    """This machine cannot have a kernel; says why."""


@cache
def load(source: Path, *flags: str) -> ctypes.CDLL:
    """The functions of a C file, which may include the headers beside it.

    Raises:
        NotHere: there is no compiler that makes them.
    """
    compiler = shlex.split(os.environ.get("CC") or "gcc")
    if not compiler or shutil.which(compiler[0]) is None:
        raise NotHere("there is no C compiler; install gcc, or name one in $CC")
    content = [each.read_bytes() for each in (source, *sorted(source.parent.glob("*.h")))]
    built_by = (*compiler, platform.machine(), *_FLAGS, *flags)
    key = hashlib.sha256(b"\0".join([*content, *map(str.encode, built_by)]))
    place = kept(f"{source.stem}-{key.hexdigest()[:16]}.so")
    if place is not None:
        with contextlib.suppress(OSError):  # not there yet, or damaged
            return ctypes.CDLL(str(place))
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = _compiled(compiler, source, flags, Path(folder))
            if place is not None:
                with contextlib.suppress(WriteFailed, OSError):  # then it is compiled in every run
                    files.make_folder(place.parent)
                    files.write_file(place, made.read_bytes())
                    return ctypes.CDLL(str(place))
            return ctypes.CDLL(str(made))
    except (
        OSError
    ) as error:  # no place for temporary files, or it wants a library that is not there
        raise NotHere(f"{source.name} cannot be loaded ({error})") from None


def _compiled(compiler: list[str], source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """The shared library; linked without `flags`, so that a library it needs is the one of this process."""
    parts, whole = folder / "kernels.o", folder / "kernels.so"
    for arguments in (
        [*_FLAGS, *flags, "-c", str(source), "-o", str(parts)],
        ["-shared", str(parts), "-o", str(whole)],
    ):
        ended = subprocess.run([*compiler, *arguments], capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotHere(f"{compiler[0]} cannot compile {source.name} ({last})")
    return whole
