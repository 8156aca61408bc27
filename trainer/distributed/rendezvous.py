"""The job's store: where all ranks can look, torchrun's, the launcher's or rank 0's.

The first failure of any rank is written there.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from datetime import timedelta

import msgspec
from torch.distributed import (  # type: ignore[attr-defined]  # torch's stub hides them
    PrefixStore,
    Store,
    TCPStore,
)

from shards.errors import UsageError
from trainer.distributed.process_group import ProcessGroup

_CONNECT_TIMEOUT = timedelta(minutes=5)
_START_TIMEOUT = timedelta(minutes=30)
"""Between the first process that runs and the last: it may come from a slow disk."""
_POLL_SECONDS = 0.05
_FAILED, _READY = "failed", "ready"


class Failure(msgspec.Struct, frozen=True):
    """Why the job ends: what the first rank to fail, or whoever missed it, wrote into the store."""

    message: str
    code: int = 1


def connect_store(ranks: ProcessGroup) -> Store:
    """Reach the job's store; under plain MASTER_ADDR and MASTER_PORT rank 0 is the one that has it.

    Raises:
        UsageError: the address is missing or nobody answers there.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=ranks.is_main and not hosted,
            wait_for_workers=False,
            timeout=_CONNECT_TIMEOUT,
        )
        # a job that torchrun starts again finds none of what was before
        start = _join_start(store, ranks) if "TORCHELASTIC_RUN_ID" in os.environ else 0
    except (KeyError, ValueError, RuntimeError) as error:
        raise UsageError(
            "MASTER_ADDR, MASTER_PORT: the ranks cannot meet there"
            f" ({' '.join(str(error).split())}); start by torchrun, or correct the address"
        ) from None
    return PrefixStore(f"usrgan/{start}", store)


def _join_start(store: Store, ranks: ProcessGroup) -> int:
    """Which start of the job this is, told by the rank 0 that lives now; the first is 0.

    Each machine's torchrun counts restarts for itself, and its store keeps what the dead have written. So
    the others ask under a name that is new, and say that they have come under the number of the answer.
    """
    if not ranks.is_main:
        name = secrets.token_hex(8)
        store.set(f"asked/{ranks.rank}", name)
        store.wait([f"start of {name}"], _START_TIMEOUT)
        start = int(store.get(f"start of {name}"))
        store.set(f"{start}/{ranks.rank}", "1")
        return start
    start = store.add("starts", 1) - 1
    others, deadline = range(1, ranks.world_size), time.monotonic() + _START_TIMEOUT.total_seconds()
    while not store.check([f"{start}/{rank}" for rank in others]):
        if time.monotonic() > deadline:
            raise RuntimeError("not all ranks have come")
        for rank in others:
            if store.check([f"asked/{rank}"]):
                store.set(f"start of {store.get(f'asked/{rank}').decode()}", str(start))
        time.sleep(_POLL_SECONDS)
    return start


def host_store() -> tuple[Store, int]:
    """A store for the ranks that this process starts, and the port on which they find it."""
    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_CONNECT_TIMEOUT
    )
    return PrefixStore("usrgan/0", store), store.port


def announce_ready(store: Store, rank: int) -> None:
    """Say that the process of a rank listens to signals now."""
    store.set(f"{_READY}/{rank}", "1")


def are_all_ready(store: Store, *, world: int) -> bool:
    """Whether every rank listens to signals."""
    ready: bool = store.check([f"{_READY}/{rank}" for rank in range(world)])
    return ready


def record_failure(store: Store, failure: Failure) -> bool:
    """Write down why the job ends; False if that was known before."""
    text = msgspec.json.encode(failure).decode()
    written: bytes = store.compare_set(_FAILED, "", text)
    return written == text.encode()


def read_failure(store: Store) -> Failure | None:
    """Why the job ends, if it does."""
    if not store.check([_FAILED]):
        return None
    return msgspec.json.decode(store.get(_FAILED), type=Failure)


def is_first_report(store: Store, message: str) -> bool:
    """Whether no other rank said the same; all of them find what is wrong with an option."""
    key = f"told/{hashlib.blake2b(message.encode(), digest_size=8).hexdigest()}"
    times: int = store.add(key, 1)
    return times == 1
