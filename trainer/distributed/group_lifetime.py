"""Start and end of torch's process group: all ranks open it, and the first error ends all of them.

A rank may fail before the group exists. The other ranks then wait in Python for it, where a signal or
the recorded failure ends them; a wait inside torch would last until its timeout.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from shards.errors import Stopped, UsageError, UsrganError
from trainer.distributed import rendezvous
from trainer.distributed.heartbeat import BEAT_SECONDS, Heartbeat, exit_now, silence_seconds
from trainer.distributed.process_group import LostRank, ProcessGroup, wrap_collective_errors
from trainer.distributed.rendezvous import Failure, announce_state, have_all_reached, read_failure

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Time limit of a collective. Long, because rank 0 may write to a slow disk meanwhile."""


@contextlib.contextmanager
def open_process_group(
    ranks: ProcessGroup, heartbeat: Heartbeat | None, device: torch.device
) -> Iterator[None]:
    """Open torch's process group; at the end, or after a stop request, wait for all ranks.

    Raises:
        LostRank: the connections cannot be opened, or break.
        Stopped: the user requested a stop.
        UsrganError: not all ranks started.
    """
    if heartbeat is None:
        yield
        return
    _wait_for_all_ranks(ranks, heartbeat)
    is_cuda = device.type == "cuda"
    with wrap_collective_errors():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=heartbeat.store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if is_cuda else None,
        )
    stopped = None
    try:
        yield
    except Stopped as error:
        stopped = error
    ranks.barrier()  # rank 0 may still write
    heartbeat.stop()
    ranks.barrier()  # the host of the store exits only after all heartbeats stopped
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


def _wait_for_all_ranks(ranks: ProcessGroup, heartbeat: Heartbeat) -> None:
    """Wait until every rank is about to open the process group: torch's own wait ignores signals.

    Raises:
        LostRank: another rank failed before.
        Stopped: the user requested a stop.
        UsrganError: not all ranks started.
    """
    store, world_size = heartbeat.store, ranks.world_size

    def have_all_joined() -> bool:
        if (failure := read_failure(store)) is not None:
            raise LostRank(failure.message)
        return have_all_reached(store, rendezvous.JOINED, world_size=world_size)

    try:
        with wrap_collective_errors():
            announce_state(store, rendezvous.JOINED, ranks.rank)
            rendezvous.poll_until(
                have_all_joined,
                seconds=rendezvous.START_SECONDS,
                stop_requested=heartbeat.stop_requested,
                missing=lambda: rendezvous.find_missing(
                    store, rendezvous.JOINED, world_size=world_size
                ),
            )
    except TimeoutError as error:
        raise UsrganError(f"rank {ranks.rank}: {error}; start all ranks, then check them") from None


@contextlib.contextmanager
def end_all_on_error(
    ranks: ProcessGroup, heartbeat: Heartbeat, *, print_error: Callable[[BaseException], int]
) -> Iterator[None]:
    """End all ranks at the first error of any rank; only this error is printed.

    `print_error` prints an error and returns its exit code. The process ends without clean-up, because
    communication libraries may hang in it after the loss of a peer.
    """
    try:
        yield
    except LostRank:
        try:
            failure, is_first = heartbeat.find_cause()
        except RuntimeError:  # the store is lost, too
            time.sleep(3 * BEAT_SECONDS)  # the heartbeat thread reports it
            exit_now(1)
        if is_first:
            print_error(UsrganError(failure.message))
        heartbeat.exit(failure.code)
    except Stopped as error:
        is_reporter = ranks.is_main
        if not heartbeat.is_stopped:  # no process group yet: the other ranks do not know
            with contextlib.suppress(RuntimeError):
                is_reporter = heartbeat.record_failure(Failure(str(error), error.exit_code))
        heartbeat.exit(print_error(error) if is_reporter else error.exit_code)
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        with contextlib.suppress(RuntimeError):
            heartbeat.record_failure(Failure(str(error), code))
            if not heartbeat.is_first_report(str(error)):
                heartbeat.exit(code)
        needs_rank = (
            code != UsageError.exit_code and ranks.rank > 0 and isinstance(error, UsrganError)
        )
        heartbeat.exit(
            print_error(type(error)(f"rank {ranks.rank}: {error}") if needs_rank else error)
        )


def report_early_failure(
    ranks: ProcessGroup, failure: Failure, *, stop_requested: Callable[[], bool]
) -> NoReturn:
    """Report a failure that precedes the heartbeat to the other ranks, and end this process.

    Waits at most `silence_seconds()` for the other ranks, which may not have started.
    """
    with contextlib.suppress(UsrganError, RuntimeError):
        silence = silence_seconds()
        store = rendezvous.connect_store(ranks, stop_requested=stop_requested, seconds=silence)
        heartbeat = Heartbeat(
            store, ranks, silence=silence, print_error=_print_nothing, stop_requested=stop_requested
        )
        heartbeat.record_failure(failure)
        heartbeat.exit(failure.code)
    exit_now(failure.code)


def _print_nothing(_: str) -> None:
    """Discard a message: the failure itself is printed already."""
