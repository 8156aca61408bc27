"""`train-sr --gpus N`: starts one process (rank) per GPU, and ends all of them together.

Each rank runs the same command line with the environment variables of torchrun. The launcher hosts the
store, forwards signals, and reports a rank that was killed and could not report it itself.
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
from trainer.distributed.rendezvous import (
    READY,
    Failure,
    have_all_reached,
    host_store,
    record_failure,
)

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # torch's stub hides it

POLL_SECONDS = 0.05
GRACE_SECONDS = 8.0
"""Time that the other ranks have to end by themselves after one failed."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_RANK_CODE = "from trainer.cli import train_main; train_main()"


def launch_ranks(arguments: Sequence[str], *, count: int) -> int:
    """Run `train-sr ARGUMENTS` in `count` processes of this machine; return the exit code of the job.

    Raises:
        UsrganError: a process was killed; the others have ended.
    """
    store, port = host_store()
    children: list[subprocess.Popen[bytes]] = []
    with _forward_signals(children, store) as forward_pending:
        try:
            children.extend(
                _start_rank(arguments, rank=rank, count=count, port=port) for rank in range(count)
            )
            while (code := _poll_exit_code(children, store)) is None:
                forward_pending()
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
    # own session: Ctrl-C reaches only the launcher, which forwards it once
    # -P: do not import trainer.py or random.py from the current folder
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _RANK_CODE, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _poll_exit_code(children: list[subprocess.Popen[bytes]], store: Store) -> int | None:
    """Return the exit code of the job; None while ranks run.

    Raises:
        UsrganError: a rank was killed, and no other failure came before.
    """
    codes = [child.poll() for child in children]
    failed = {
        rank: code for rank, code in enumerate(codes) if code not in (None, 0, Stopped.exit_code)
    }
    if not failed:
        return None if None in codes else max(code for code in codes if code is not None)
    rank, code = min(failed.items(), key=lambda item: item[1] >= 0)  # killed ranks first
    was_killed = code < 0
    message = _exit_message(rank, children[rank]) if was_killed else f"rank {rank} failed"
    is_first = record_failure(store, Failure(message, 1 if was_killed else code))
    _wait_for_exit(children, GRACE_SECONDS)
    if was_killed and is_first:
        raise UsrganError(message)
    return 1 if was_killed else code


def _wait_for_exit(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _exit_message(rank: int, child: subprocess.Popen[bytes]) -> str:
    number = -child.returncode
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = " (often by the kernel: out of memory)" if number == signal.SIGKILL else ""
    return (
        f"rank {rank} (pid {child.pid}) was ended by {name}{hint}, and all ranks stop;"
        " the checkpoints are intact: run the same command again to resume from the last checkpoint"
    )


@contextlib.contextmanager
def _forward_signals(
    children: list[subprocess.Popen[bytes]], store: Store
) -> Iterator[Callable[[], None]]:
    """Yield a function that forwards received signals once all ranks handle them.

    A second SIGTERM or SIGINT kills all ranks at once.
    """
    received: list[int] = []
    forwarded = 0

    def receive(number: int, _frame: FrameType | None) -> None:
        if received and number != signal.SIGUSR1:
            for child in children:
                child.kill()
            os._exit(1)
        received.append(number)

    def forward_pending() -> None:
        nonlocal forwarded
        if forwarded < len(received) and have_all_reached(store, READY, world_size=len(children)):
            for child in children:
                child.send_signal(received[forwarded])
            forwarded += 1

    previous = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield forward_pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
