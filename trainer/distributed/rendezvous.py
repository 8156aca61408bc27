"""Rendezvous: how the ranks of a job find their shared store, and what they write into it.

The store is a TCPStore of torch. torchrun, the launcher or rank 0 hosts it. Ranks announce there that
they started, that they can stop on a signal, and the first failure, which ends the job.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec
from torch.distributed import (  # type: ignore[attr-defined]  # torch's stub hides them
    PrefixStore,
    Store,
    TCPStore,
)

from shards.errors import Stopped, UsageError
from trainer.distributed.process_group import ProcessGroup

CONNECT_SECONDS = 5 * 60.0
"""Time limit to reach the store."""
START_SECONDS = 30 * 60.0
"""Time limit between the first rank that starts and the last, which may import from a slow disk."""
POLL_SECONDS = 0.05
_OPERATION_TIMEOUT = timedelta(minutes=5)
_FAILURE_KEY = "failure"
_STARTS_KEY = "starts"


class Failure(msgspec.Struct, frozen=True):
    """Why the job ends: the first failure that a rank or the launcher recorded in the store."""

    message: str
    code: int = 1
    """Exit code of every rank."""


def connect_store(
    ranks: ProcessGroup,
    *,
    stop_requested: Callable[[], bool] = bool,
    seconds: float | None = None,
) -> Store:
    """Return the job's store; rank 0 hosts it unless torchrun or the launcher does.

    `seconds` replaces the time limits for the host and for the other ranks.

    Raises:
        UsageError: the address is missing, or a time limit passed.
        Stopped: the user requested a stop before all ranks started.
    """
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        is_host = is_store_host(ranks)
        if not is_host:
            _wait_for_host(host, port, stop_requested, seconds=seconds or CONNECT_SECONDS)
        store = TCPStore(
            host, port, is_master=is_host, wait_for_workers=False, timeout=_OPERATION_TIMEOUT
        )
        start = 0
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's store outlives a restart of the ranks
            start = _join_start(store, ranks, stop_requested, seconds=seconds or START_SECONDS)
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(
            f"MASTER_ADDR, MASTER_PORT: rank {ranks.rank} cannot join the other ranks there"
            f" ({' '.join(str(error).split())}); start by torchrun, or correct the address"
        ) from None
    return PrefixStore(f"usrgan/{start}", store)


def is_store_host(ranks: ProcessGroup) -> bool:
    """Whether this process hosts the store, which is lost when it exits."""
    return ranks.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def host_store() -> tuple[Store, int]:
    """Host a store on a free local port for ranks that this process starts; return it and the port."""
    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_OPERATION_TIMEOUT
    )
    return PrefixStore("usrgan/0", store), store.port


def poll_until(
    is_done: Callable[[], bool],
    *,
    seconds: float,
    stop_requested: Callable[[], bool],
    missing: Callable[[], str],
) -> None:
    """Poll until `is_done()`; unlike a wait inside torch, a signal or a time limit ends it.

    Raises:
        TimeoutError: `seconds` passed; the message names what `missing()` returns.
        Stopped: the user requested a stop.
    """
    deadline = time.monotonic() + seconds
    while not is_done():
        if stop_requested():
            raise Stopped(
                "stopped before all ranks started, nothing was trained;"
                " run the same command again to resume from the last checkpoint"
            )
        if time.monotonic() > deadline:
            limit = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
            raise TimeoutError(f"no answer from {missing()} within {limit}")
        time.sleep(POLL_SECONDS)


def _wait_for_host(
    host: str, port: int, stop_requested: Callable[[], bool], *, seconds: float
) -> None:
    """Wait until the host of the store accepts connections."""

    def is_listening() -> bool:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            return False
        return True

    poll_until(
        is_listening,
        seconds=seconds,
        stop_requested=stop_requested,
        missing=lambda: f"{host}:{port}",
    )


# keys of the handshake between rank 0 and another rank


def request_key(rank: int) -> str:
    """Key under which a rank asks rank 0 for the start number; its value is a token, new each time."""
    return f"start/request/{rank}"


def _reply_key(token: str) -> str:
    """Key under which rank 0 answers a request; its value is the start number."""
    return f"start/reply/{token}"


def _confirmation_key(start: int, rank: int) -> str:
    """Key under which a rank confirms that it takes part in a start."""
    return f"start/{start}/confirmed/{rank}"


def _join_start(
    store: Store, ranks: ProcessGroup, stop_requested: Callable[[], bool], *, seconds: float
) -> int:
    """Agree with all ranks on how many times torchrun started the job before; return this number.

    torchrun counts restarts per machine, and its store keeps the keys of dead ranks. Rank 0 therefore
    issues the number, and replies to a token that no dead rank can have used:

        rank r                        store                        rank 0
          |                             |<-- start = add(starts) - 1 --|
          |--- request/r = token ------>|                              |
          |                             |--- token ------------------->|
          |                             |<-- reply/token = start ------|
          |<-- start -------------------|                              |
          |--- start/confirmed/r ------>|                              |
          |                             |--- all ranks confirmed ----->|

    Raises:
        TimeoutError: not all ranks joined.
        Stopped: the user requested a stop.
    """
    if ranks.is_main:
        start = int(store.add(_STARTS_KEY, 1)) - 1

        def unconfirmed_ranks() -> list[int]:
            others = range(1, ranks.world_size)
            return [rank for rank in others if not store.check([_confirmation_key(start, rank)])]

        def reply_to_requests() -> bool:
            for rank in unconfirmed_ranks():
                if store.check([request_key(rank)]):
                    token = store.get(request_key(rank)).decode()
                    store.set(_reply_key(token), str(start))
            return not unconfirmed_ranks()

        poll_until(
            reply_to_requests,
            seconds=seconds,
            stop_requested=stop_requested,
            missing=lambda: f"ranks {', '.join(map(str, unconfirmed_ranks()))}",
        )
        return start
    token = secrets.token_hex(8)
    store.set(request_key(ranks.rank), token)
    poll_until(
        lambda: store.check([_reply_key(token)]),
        seconds=seconds,
        stop_requested=stop_requested,
        missing=lambda: "rank 0",
    )
    start = int(store.get(_reply_key(token)))
    store.set(_confirmation_key(start, ranks.rank), "1")
    return start


# states of the ranks

PROCESS, READY, JOINED, ENDED = "process", "ready", "joined", "ended"
"""A rank started (its host and pid), handles signals, waits for the process group, ends after a failure."""


def announce_state(store: Store, state: str, rank: int, *, value: str = "1") -> None:
    """Record that a rank reached a state."""
    store.set(f"{state}/{rank}", value)


def have_all_reached(store: Store, state: str, *, world_size: int, first_rank: int = 0) -> bool:
    """Whether all ranks from `first_rank` announced a state; a single request to the store."""
    ranks = range(first_rank, world_size)
    reached: bool = not ranks or store.check([f"{state}/{rank}" for rank in ranks])
    return reached


def describe_rank(store: Store, rank: int) -> str:
    """Return the rank with its host and process id, as far as the store holds them."""
    key = f"{PROCESS}/{rank}"
    return f"rank {rank} ({store.get(key).decode()})" if store.check([key]) else f"rank {rank}"


def find_missing(store: Store, state: str, *, world_size: int) -> str:
    """Describe the ranks that have not announced a state."""
    missing = [rank for rank in range(world_size) if not store.check([f"{state}/{rank}"])]
    return ", ".join(describe_rank(store, rank) for rank in missing)


# failures


def record_failure(store: Store, failure: Failure) -> bool:
    """Record why the job ends; return False if the store already holds a failure."""
    token = secrets.token_hex(4)  # two ranks may record the same failure
    entry = f"{token} {msgspec.json.encode(failure).decode()}"
    written: bytes = store.compare_set(_FAILURE_KEY, "", entry)
    return written == entry.encode()


def read_failure(store: Store) -> Failure | None:
    """Return why the job ends; None while it runs."""
    if not store.check([_FAILURE_KEY]):
        return None
    _, _, text = store.get(_FAILURE_KEY).partition(b" ")
    return msgspec.json.decode(text, type=Failure)


def is_first_report(store: Store, message: str) -> bool:
    """Return whether no other rank reported this message, as all ranks do for a wrong option."""
    key = f"reported/{hashlib.blake2b(message.encode(), digest_size=8).hexdigest()}"
    count: int = store.add(key, 1)
    return count == 1
