"""Wall time, CPU time and peak memory of a command, with every process that it starts.

The command runs below a process of its own that adopts orphans (Linux's child subreaper), so that
workers of a fork server, which nobody waits for, are counted as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from shards.errors import UsageError, UsrganError

_PR_SET_CHILD_SUBREAPER = 36


class Measured(msgspec.Struct, frozen=True):
    """What a command took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all processes, user and system."""
    peak_mib: float
    """Resident memory of the largest single process."""
    output: str
    """What it printed on stdout."""


def measure(command: Sequence[str]) -> Measured:
    """Run a command to its end.

    Raises:
        UsageError: this is not Linux.
        UsrganError: the command failed; with its last line.
    """
    if sys.platform != "linux":
        raise UsageError("bench-sr: counts the processes of a command in Linux's way; use Linux")
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.bench.process", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},  # compiled, as pip leaves modules
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsrganError(f"bench-sr: {last.removeprefix('error: ')}")
    return msgspec.json.decode(ended.stdout, type=Measured)


def _run(command: Sequence[str]) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    start = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    wall = time.monotonic() - start
    with contextlib.suppress(ChildProcessError):  # until there is none left
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = {
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "output": ended.stdout,
    }
    print(json.dumps(told))  # noqa: T201  read by `measure`
    return ended.returncode


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
