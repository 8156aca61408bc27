"""Whether a GPU and this machine can compile and run the Triton kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

from shards.errors import UsrganError


def unavailable_reason(device: torch.device) -> str:
    """Why the kernels cannot run on this GPU or machine; empty if they can."""
    if torch.version.hip is not None:
        return "the Triton kernels are untested on AMD GPUs"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need a GPU of the Ampere generation or later"
    if importlib.util.find_spec("triton") is None:
        return "Triton, which compiles kernels for GPUs, is not installed"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "Triton needs a C compiler, and none was found"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Triton needs Python's headers, which are not installed (python3-dev)"
    return ""


@contextlib.contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Turn a failure of Triton or of its compiler into one line with the fix.

    Raises:
        UsrganError: Triton, or the compiler that it started, failed inside.
    """
    try:
        yield
    except Exception as error:
        triton = type(error).__module__.startswith("triton")
        if not triton and not isinstance(error, subprocess.CalledProcessError):
            raise
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsrganError(
            f"speed.dense: kernels for this GPU do not compile: {first_line}; use --set speed.dense=plain"
        ) from error
