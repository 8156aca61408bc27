"""How the ranks of a job learn of each other's death: a thread, a store, and a beat every second.

A collective notices a peer that was killed, at best after a while and without a name, and one that
hangs not at all. So each rank counts up in the job's store (the launcher's, torchrun's, or rank 0's)
and looks at its neighbour's count; the first failure is written there, and ends all.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # torch's stub hides it

from shards.errors import Stopped, UsageError, UsrganError
from trainer.distributed.process_group import LostRank, ProcessGroup, wrap_collective_errors
from trainer.distributed.rendezvous import (
    Failure,
    announce_ready,
    is_first_report,
    read_failure,
    record_failure,
)

BEAT_SECONDS = 1.0
SILENCE_VARIABLE = "USRGAN_RANK_TIMEOUT"
"""Seconds after which a rank that cannot be heard counts as gone."""
DEFAULT_SILENCE = 30.0
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for a rank that is alive: rank 0 may be writing to a slow disk."""


def silence_seconds() -> float:
    """How long a rank may be silent.

    Raises:
        UsageError: USRGAN_RANK_TIMEOUT is no number of seconds.
    """
    text = os.environ.get(SILENCE_VARIABLE, str(DEFAULT_SILENCE))
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise UsageError(
        f"{SILENCE_VARIABLE}: {text!r} is no number of seconds; set it to 30, or unset it"
    )


class Heartbeat:
    """Beats for this rank and watches the next one, in a thread, until it is stopped."""

    def __init__(
        self, store: Store, ranks: ProcessGroup, *, silence: float, tell: Callable[[str], None]
    ) -> None:
        self.store = store
        self._ranks = ranks
        self._silence = silence
        self._tell = tell
        self._stopped = threading.Event()
        store.set(f"who/{ranks.rank}", f"on {socket.gethostname()}, pid {os.getpid()}")
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Say that this process listens to signals now."""
        announce_ready(self.store, self._ranks.rank)

    def stop(self) -> None:
        """End beating; the others must not be watching any more."""
        self._stopped.set()

    def why(self) -> Failure | None:
        """Who is behind a broken connection; None if somebody has told already.

        The dead do not beat: a rank whose count stands still for three seconds is the one.
        """
        before = self._counts()
        for _ in range(3):
            time.sleep(BEAT_SECONDS)
            if read_failure(self.store) is not None:
                return None
        still = [
            rank
            for rank, (old, new) in enumerate(zip(before, self._counts(), strict=True))
            if old == new and rank != self._ranks.rank
        ]
        failure = Failure(
            _describe_lost(self._names(still)) if still else _describe_broken(self._ranks.rank)
        )
        return failure if record_failure(self.store, failure) else None

    def _counts(self) -> list[int]:
        return [self.store.add(f"beat/{rank}", 0) for rank in range(self._ranks.world_size)]

    def _names(self, ranks: list[int]) -> str:
        return ", ".join(
            f"rank {rank} ({self.store.get(f'who/{rank}').decode()})"
            if self.store.check([f"who/{rank}"])
            else f"rank {rank}"
            for rank in ranks
        )

    def _run(self) -> None:
        neighbour = (self._ranks.rank + 1) % self._ranks.world_size
        count, heard = 0, time.monotonic()
        try:
            while not self._stopped.wait(BEAT_SECONDS):
                self.store.add(f"beat/{self._ranks.rank}", 1)
                failure = read_failure(self.store)
                if failure is not None:
                    self._end_soon(failure.code)
                found = self.store.add(f"beat/{neighbour}", 0)
                if found != count or not found:  # before its first beat it is still starting
                    count, heard = found, time.monotonic()
                elif time.monotonic() - heard > self._silence:
                    told = Failure(_describe_lost(self._names([neighbour]), seconds=self._silence))
                    if record_failure(self.store, told):
                        self._tell(told.message)
                    exit_now(told.code)
        except RuntimeError:  # the store has gone, and with it the launcher or its machine
            if not self._stopped.is_set():
                self._tell(
                    f"rank {self._ranks.rank}: the process that started the ranks has gone;"
                    " run the same command again to go on from the last checkpoint"
                )
                exit_now(1)

    def _end_soon(self, code: int) -> None:
        """Give the main thread, which may hang in a collective, time to end by itself."""
        if not self._stopped.wait(2 * BEAT_SECONDS):
            exit_now(code)


@contextlib.contextmanager
def open_process_group(
    ranks: ProcessGroup, watch: Heartbeat | None, device: torch.device
) -> Iterator[None]:
    """Open the ways between the ranks; the end, or a stop on request, waits for all of them.

    Raises:
        LostRank: they cannot be opened, or break.
    """
    if watch is None:
        yield
        return
    cuda = device.type == "cuda"
    with wrap_collective_errors():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=watch.store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if cuda else None,
        )
    stopped = None
    try:
        yield
    except Stopped as error:
        stopped = error
    ranks.barrier()  # for rank 0, which writes
    watch.stop()
    ranks.barrier()  # the one that keeps the store leaves when nobody looks into it any more
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


@contextlib.contextmanager
def end_all_on_error(
    ranks: ProcessGroup, watch: Heartbeat, *, tell: Callable[[BaseException], int]
) -> Iterator[None]:
    """Let the first real error of any rank be the one that is told, and end this process hard.

    `tell` prints an error and returns its exit code. What a dead peer leaves behind in the
    communication libraries can hang a normal exit, so there is none.
    """
    try:
        yield
    except LostRank:
        try:
            failure = watch.why()
            if failure is not None:
                tell(UsrganError(failure.message))
        except RuntimeError:  # the store has gone, too
            time.sleep(3 * BEAT_SECONDS)  # the watch says so
        exit_now(1)
    except Stopped as error:
        exit_now(tell(error) if ranks.is_main else error.exit_code)
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        with contextlib.suppress(RuntimeError):
            record_failure(watch.store, Failure(str(error), code))
            if not is_first_report(watch.store, str(error)):
                exit_now(code)
        prefixed = (
            code != UsageError.exit_code and ranks.rank > 0 and isinstance(error, UsrganError)
        )
        exit_now(tell(type(error)(f"rank {ranks.rank}: {error}") if prefixed else error))


def _describe_lost(who: str, *, seconds: float | None = None) -> str:
    how = "is gone" if seconds is None else f"has not been heard of for {seconds:.0f} s"
    return (
        f"{who} {how}, and all ranks stop; the checkpoints are intact:"
        " run the same command again to go on"
    )


def _describe_broken(rank: int) -> str:
    return (
        f"rank {rank}: the connection to the other ranks broke; check the network between the machines,"
        " and run the same command again to go on from the last checkpoint"
    )


def exit_now(code: int) -> None:
    """End this process now, whatever its other threads wait for; a normal exit may abort on gloo's."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
