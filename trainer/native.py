"""C for processors, compiled where it is used: once for a machine, and kept in a cache.

No wheel of ours has machine code in it. What needs a kernel has a way without, so a machine that cannot have
it (no compiler, another processor) is told why and goes on. Threads are those of torch: the kernels'
OpenMP calls find the library that torch has loaded, and with it torch's threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from shards import files
from shards.errors import UsrganError, WriteFailed
from trainer.home import kept

Backward = TypeVar("Backward", bound=Callable[..., Any])
_FLAGS = ("-O3", "-fPIC", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16")


class Pictures(ctypes.Structure):
    """The shape of bf16 pictures as C knows it."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("images", "height", "width", "channels"))


PICTURES = (Pictures, ctypes.c_int)
"""The last arguments of every kernel: the shape, and how many threads."""


def pictures(x: Tensor) -> tuple[Pictures, int]:
    """The last arguments for maps [b c h w] with the channels of a pixel side by side."""
    b, c, h, w = x.shape
    return Pictures(b, h, w, c), torch.get_num_threads()


def once_differentiable(backward: Backward) -> Backward:
    """For gradients by hand: refuse to be differentiated again.

    torch's own returns a constant instead, where the incoming gradient is one, and a penalty would be lost.
    """

    @functools.wraps(backward)
    def once(*arguments: Any) -> Any:  # noqa: ANN401  as torch has it
        if torch.is_grad_enabled():  # as `create_graph` has it
            raise NotImplementedError("kernels of C can be differentiated once only")
        return backward(*arguments)

    return once  # type: ignore[return-value]  # of the same signature


class NotHere(UsrganError):
    """This machine cannot have a kernel; says why."""


@cache
def load(source: Path) -> ctypes.CDLL:
    """The kernels of a C file, which may include the headers beside it.

    Raises:
        NotHere: the processor has no AVX512-BF16, or there is no compiler that makes them.
    """
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        raise NotHere("this processor has no AVX512-BF16")
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise NotHere("there is no C compiler; install gcc, or name one in $CC")
    content = [each.read_bytes() for each in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*content, compiler.encode(), *map(str.encode, _FLAGS)]))
    place = kept(f"{source.stem}-{key.hexdigest()[:16]}.so")
    if place is not None:
        with contextlib.suppress(OSError):  # not there yet, or damaged
            return ctypes.CDLL(str(place))
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = _compiled(compiler, source, Path(folder))
            if place is not None:
                with contextlib.suppress(WriteFailed, OSError):  # then it is compiled in every run
                    files.make_folder(place.parent)
                    files.write_file(place, made.read_bytes())
                    return ctypes.CDLL(str(place))
            return ctypes.CDLL(str(made))
    except OSError as error:  # it wants another OpenMP library than torch's
        raise NotHere(f"{source.name} cannot be loaded ({error})") from None


def _compiled(compiler: str, source: Path, folder: Path) -> Path:
    """The shared library; linked without OpenMP's own library, so that torch's is taken."""
    parts, whole = folder / "kernels.o", folder / "kernels.so"
    for arguments in (
        [*_FLAGS, "-c", str(source), "-o", str(parts)],
        ["-shared", str(parts), "-o", str(whole)],
    ):
        ended = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotHere(f"{compiler} cannot compile {source.name} ({last})")
    return whole
