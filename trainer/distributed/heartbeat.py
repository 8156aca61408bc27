"""Detection of a rank that died or hangs: a thread in each rank, and a counter per rank in the store.

A collective detects a killed peer late and without its name, and a hanging peer not at all. Each rank
therefore increments its counter every second and watches the counter of the next rank. The first
failure is recorded in the store and ends all ranks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from torch.distributed import Store  # type: ignore[attr-defined]  # torch's stub hides it

from shards.errors import UsageError
from trainer.distributed import rendezvous
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.rendezvous import (
    Failure,
    announce_state,
    describe_rank,
    have_all_reached,
    is_first_report,
    read_failure,
    record_failure,
)

BEAT_SECONDS = 1.0
SILENCE_VARIABLE = "USRGAN_RANK_TIMEOUT"
"""Environment variable: seconds without a heartbeat after which a rank counts as lost."""
DEFAULT_SILENCE = 30.0


def silence_seconds() -> float:
    """Return the seconds without a heartbeat after which a rank counts as lost.

    Raises:
        UsageError: USRGAN_RANK_TIMEOUT is not a positive number.
    """
    text = os.environ.get(SILENCE_VARIABLE, str(DEFAULT_SILENCE))
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise UsageError(
        f"{SILENCE_VARIABLE}: {text!r} is not a positive number of seconds; set it to 30, or unset it"
    )


class Heartbeat:
    """Thread that increments this rank's counter and watches the next rank, until `stop`."""

    def __init__(
        self,
        store: Store,
        ranks: ProcessGroup,
        *,
        silence: float,
        print_error: Callable[[str], None],
        stop_requested: Callable[[], bool] = bool,
    ) -> None:
        self.store = store
        """The store for torch's process group."""
        self.stop_requested = stop_requested
        """Whether the user requested a stop of this process."""
        # a connection of its own: a wait inside torch blocks every other call on the same connection
        self._store = store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it
        self._ranks = ranks
        self._silence = silence
        self._print_error = print_error
        self._stopped = threading.Event()
        process = f"on {socket.gethostname()}, pid {os.getpid()}"
        announce_state(self._store, rendezvous.PROCESS, ranks.rank, value=process)
        self._store.add(_beat_key(ranks.rank), 1)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def is_stopped(self) -> bool:
        """Whether all ranks agreed to end, so that a missing rank is no failure."""
        return self._stopped.is_set()

    def announce_ready(self) -> None:
        """Record that this process handles signals."""
        announce_state(self._store, rendezvous.READY, self._ranks.rank)

    def stop(self) -> None:
        """Stop the thread; call it only after all ranks arrived at a barrier."""
        self._stopped.set()

    def record_failure(self, failure: Failure) -> bool:
        """Record why the job ends; return False if the store already holds a failure."""
        return record_failure(self._store, failure)

    def is_first_report(self, message: str) -> bool:
        """Return whether no other rank reported this message."""
        return is_first_report(self._store, message)

    def find_cause(self) -> tuple[Failure, bool]:
        """Return the failure behind a broken collective, and whether this rank recorded it.

        Unless the store holds a failure, ranks whose counter stands still for three seconds are lost.
        """
        before = self.read_counters()
        for _ in range(3):
            if (failure := read_failure(self._store)) is not None:
                return failure, False
            time.sleep(BEAT_SECONDS)
        lost = [
            rank
            for rank, (old, new) in enumerate(zip(before, self.read_counters(), strict=True))
            if old == new and rank != self._ranks.rank
        ]
        names = ", ".join(describe_rank(self._store, rank) for rank in lost)
        failure = Failure(
            _describe_lost(names, number=len(lost)) if lost else _describe_broken(self._ranks.rank)
        )
        is_first = self.record_failure(failure)
        return read_failure(self._store) or failure, is_first

    def exit(self, code: int) -> NoReturn:
        """End this process; the host of the store first lets the other ranks read the failure."""
        if not self.is_stopped:
            with contextlib.suppress(RuntimeError):
                announce_state(self._store, rendezvous.ENDED, self._ranks.rank)
                if rendezvous.is_store_host(self._ranks):
                    self._wait_for_readers()
        exit_now(code)

    def _wait_for_readers(self) -> None:
        """Wait until the other ranks have read the failure; they read it each beat once they started."""
        began = time.monotonic()
        others = {"world_size": self._ranks.world_size, "first_rank": 1}
        while not have_all_reached(self._store, rendezvous.ENDED, **others):
            waited = time.monotonic() - began
            all_started = have_all_reached(self._store, rendezvous.PROCESS, **others)
            if waited > (2 * BEAT_SECONDS if all_started else self._silence):
                return
            if self.stop_requested():
                return
            time.sleep(rendezvous.POLL_SECONDS)

    def read_counters(self) -> list[int]:
        """Return the number of heartbeats of each rank."""
        return [self._store.add(_beat_key(rank), 0) for rank in range(self._ranks.world_size)]

    def _run(self) -> None:
        neighbour = (self._ranks.rank + 1) % self._ranks.world_size
        count, heard = 0, time.monotonic()
        try:
            while not self._stopped.wait(BEAT_SECONDS):
                self._store.add(_beat_key(self._ranks.rank), 1)
                if (failure := read_failure(self._store)) is not None:
                    self._exit_after_grace(failure.code)
                latest = self._store.add(_beat_key(neighbour), 0)
                if latest != count or not latest:  # 0: the neighbour has not started yet
                    count, heard = latest, time.monotonic()
                elif time.monotonic() - heard > self._silence:
                    name = describe_rank(self._store, neighbour)
                    failure = Failure(_describe_lost(name, seconds=self._silence))
                    if self.record_failure(failure):
                        self._print_error(failure.message)
                    self.exit(failure.code)
        except RuntimeError:  # the host of the store is gone
            if not self._stopped.is_set():
                self._print_error(
                    f"rank {self._ranks.rank}: the job's store is gone, because the launcher or rank 0 ended;"
                    " run the same command again to resume from the last checkpoint"
                )
                exit_now(1)

    def _exit_after_grace(self, code: int) -> None:
        """Let the main thread end by itself; exit if it does not, because it may hang in a collective."""
        announce_state(self._store, rendezvous.ENDED, self._ranks.rank)
        if not self._stopped.wait(2 * BEAT_SECONDS):
            self.exit(code)


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"


def _describe_lost(names: str, *, number: int = 1, seconds: float | None = None) -> str:
    if seconds is None:
        symptom = "is gone" if number == 1 else "are gone"
    else:
        symptom = f"has sent no heartbeat for {seconds:.0f} s"
    return (
        f"{names} {symptom}, and all ranks stop; the checkpoints are intact:"
        " run the same command again to resume from the last checkpoint"
    )


def _describe_broken(rank: int) -> str:
    return (
        f"rank {rank}: the connection to the other ranks broke; check the network between the machines,"
        " and run the same command again to resume from the last checkpoint"
    )


def exit_now(code: int) -> NoReturn:
    """End this process without clean-up, which may abort in gloo or wait for other threads."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
