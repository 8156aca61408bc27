"""`train-sr --gpus N`: one process per GPU, started, watched and ended together.

Each is the same command line with the variables that torchrun sets. The launcher keeps the store in
which they meet, hands signals on, and tells how a process ended that could not tell itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from shards.errors import Stopped, UsrganError
from trainer.distributed.rendezvous import Failure, are_all_ready, host_store, record_failure

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # torch's stub hides it

POLL_SECONDS = 0.05
GRACE_SECONDS = 8.0
"""How long the other ranks have to end by themselves when one has failed."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_RUN = "from trainer.cli import train_main; train_main()"


def launch_ranks(arguments: Sequence[str], *, count: int) -> int:
    """Run `train-sr ARGUMENTS` in `count` processes of this machine; returns the exit code.

    Raises:
        UsrganError: a process was killed; the others were ended.
    """
    store, port = host_store()
    children: list[subprocess.Popen[bytes]] = []
    with _forward_signals(children, store) as hand_on:
        try:
            children.extend(
                _start_rank(arguments, rank=rank, count=count, port=port) for rank in range(count)
            )
            while (code := _exit_code(children, store)) is None:
                hand_on()
                time.sleep(POLL_SECONDS)
            return code
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _start_rank(
    arguments: Sequence[str], *, rank: int, count: int, port: int
) -> subprocess.Popen[bytes]:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # a session of its own: Ctrl-C reaches the launcher alone, which hands it on once;
    # -P: as for `train-sr`, no trainer.py or random.py of the current folder comes in between
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _RUN, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _exit_code(children: list[subprocess.Popen[bytes]], store: Store) -> int | None:
    """The exit code of the whole, once nobody works any more."""
    codes = [child.poll() for child in children]
    failed = [code for code in codes if code not in (None, 0, Stopped.exit_code)]
    if failed:
        killed = next(
            (rank for rank, code in enumerate(codes) if code is not None and code < 0), None
        )
        if killed is not None:
            error = UsrganError(_exit_message(killed, children[killed]))
            first = record_failure(store, Failure(str(error)))
            _wait_for_exit(children, GRACE_SECONDS)
            if first:
                raise error
            return 1
        _wait_for_exit(children, GRACE_SECONDS)
        return failed[0]
    if None in codes:
        return None
    return max(code for code in codes if code is not None)


def _wait_for_exit(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _exit_message(rank: int, child: subprocess.Popen[bytes]) -> str:
    number = -child.returncode
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    often = " (often the kernel, for want of memory)" if number == signal.SIGKILL else ""
    return (
        f"rank {rank} (pid {child.pid}) was ended by {name}{often}, and all ranks stop;"
        " the checkpoints are intact: run the same command again to go on"
    )


@contextlib.contextmanager
def _forward_signals(
    children: list[subprocess.Popen[bytes]], store: Store
) -> Iterator[Callable[[], None]]:
    """Hand signals on as soon as every rank listens; a second one ends them all at once."""
    asked: list[int] = []
    handed = 0

    def request(number: int, _frame: FrameType | None) -> None:
        if asked and number != signal.SIGUSR1:
            for child in children:
                child.kill()
            os._exit(1)
        asked.append(number)

    def hand_on() -> None:
        nonlocal handed
        if handed < len(asked) and are_all_ready(store, world=len(children)):
            for child in children:
                child.send_signal(asked[handed])
            handed += 1

    before = {number: signal.signal(number, request) for number in STOPPING}
    try:
        yield hand_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
