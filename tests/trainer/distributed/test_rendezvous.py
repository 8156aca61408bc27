"""The ranks of a job agree on one store, also after torchrun restarts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.rendezvous import (
    Failure,
    connect_store,
    read_failure,
    record_failure,
    request_key,
)


@pytest.fixture
def torchrun_store(monkeypatch):
    """Store of torchrun, which outlives a restart of the ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    # torchrun counts per machine, and counts no restart that another machine caused
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    return store


def test_ranks_that_are_started_again_find_nothing_of_the_dead(torchrun_store):
    ranks = [ProcessGroup(rank=rank, world_size=3) for rank in range(3)]
    # request of a rank that died before rank 0 replied
    torchrun_store.set(request_key(1), "old token")
    for start in range(3):
        with ThreadPoolExecutor(3) as pool:
            stores = list(pool.map(connect_store, ranks))
        assert [read_failure(store) for store in stores] == [None] * 3
        assert not stores[2].check(["beat/1"])
        stores[1].add("beat/1", 1)
        assert record_failure(stores[1], Failure(f"start {start}"))
        assert [read_failure(store) for store in stores] == [Failure(f"start {start}")] * 3
