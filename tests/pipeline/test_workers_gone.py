"""A cluster whose workers are gone ends the run; a real one, and the rest of Dask, are in test_engines."""

from __future__ import annotations

import sys
import types

import pytest

from pipeline import engines
from pipeline.pool import Done
from shards.errors import UsrganError


class Future:
    def __init__(self, value: int) -> None:
        self.value = value

    def done(self) -> bool:
        return True

    def result(self) -> int:
        return self.value


class Client:
    """Of a cluster that has a worker when it is asked at these times, in order; none later on."""

    def __init__(self, *threads: int) -> None:
        self.threads = list(threads)
        self.cancelled: list[Future] = []

    def nthreads(self) -> dict[str, int]:
        return {"one": self.threads.pop(0)} if self.threads else {}

    def submit(self, function, *unit, pure):
        return Future(function(*unit))

    def cancel(self, futures) -> None:
        self.cancelled = futures


@pytest.fixture(autouse=True)
def distributed(monkeypatch):
    module = types.SimpleNamespace(wait=lambda *_, **__: None, KilledWorker=KeyError)
    monkeypatch.setitem(sys.modules, "distributed", module)
    monkeypatch.setattr(engines, "_WAIT_SECONDS", 0.05)


def test_a_cluster_without_workers_ends_the_run(monkeypatch):
    client = Client(1, 0, 0)
    monkeypatch.setattr(Future, "done", lambda self: False)
    with pytest.raises(UsrganError, match="has no workers any more"):
        list(engines._run_dask(client, lambda: False, abs, [(-1,), (2,), (3,)]))
    assert len(client.cancelled) == 2


def test_workers_that_come_back_go_on():
    ended = engines._run_dask(Client(0, 1, 0, 1), lambda: False, abs, [(-n,) for n in range(5)])
    assert sorted(each.result for each in ended if isinstance(each, Done)) == list(range(5))
