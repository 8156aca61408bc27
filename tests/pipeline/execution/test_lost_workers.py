"""Simulated clusters that lose their workers end the run; test_engines has real ones."""

from __future__ import annotations

import concurrent.futures
import sys
import time
import types

import pytest

from pipeline.execution import engines
from pipeline.execution.pool import Completed, Crashed
from shards.errors import UsageError, UsrganError


class Future:
    status = "finished"

    def __init__(self, value: int) -> None:
        self.value = value

    def done(self) -> bool:
        return True

    def result(self) -> int:
        return self.value


class Client:
    """Client of a cluster that has a worker at the given calls, in order, and none later."""

    def __init__(self, *threads: int) -> None:
        self.threads = list(threads)
        self.cancelled: list[Future] = []
        self.scheduler = types.SimpleNamespace(address="tcp://head:8786")

    def nthreads(self) -> dict[str, int]:
        return {"one": self.threads.pop(0)} if self.threads else {}

    def submit(self, function, *task, pure):
        return Future(function(*task))

    def cancel(self, futures) -> None:
        self.cancelled = futures


@pytest.fixture(autouse=True)
def distributed(monkeypatch):
    module = types.SimpleNamespace(
        wait=lambda *_, **__: None,
        KilledWorker=KeyError,
        CancelledError=concurrent.futures.CancelledError,
    )
    monkeypatch.setitem(sys.modules, "distributed", module)
    monkeypatch.setattr(engines, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(engines, "_WORKER_TIMEOUT_SECONDS", 0.05)


def test_a_cluster_without_workers_ends_the_run(monkeypatch):
    client = Client(1, 0, 0)
    monkeypatch.setattr(Future, "done", lambda self: False)
    with pytest.raises(UsrganError, match="has no workers left"):
        list(engines._run_on_dask(client, lambda: False, abs, [(-1,), (2,), (3,)]))
    assert len(client.cancelled) == 2


def test_workers_that_come_back_continue():
    ended = engines._run_on_dask(Client(0, 1, 0, 1), lambda: False, abs, [(-n,) for n in range(5)])
    assert sorted(item.result for item in ended if isinstance(item, Completed)) == list(range(5))


def refuse(error: BaseException):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (Client, "nthreads", OSError("in <TCP (closed) …>")),
        (Future, "result", concurrent.futures.CancelledError("scheduler-connection-lost")),
    ],
    ids=["connection", "future"],
)
def test_a_lost_dask_scheduler_is_reported_with_its_address(monkeypatch, owner, name, error):
    monkeypatch.setattr(owner, name, refuse(error))
    monkeypatch.setattr(Client, "cancel", refuse(OSError("closed")))
    with pytest.raises(UsrganError, match="scheduler at tcp://head:8786 is gone; run the same"):
        list(engines._run_on_dask(Client(1), lambda: False, abs, NUMBERS))


def test_an_error_of_a_task_is_not_reported_as_the_schedulers(monkeypatch):
    monkeypatch.setattr(Future, "status", "error")
    monkeypatch.setattr(Future, "result", refuse(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        list(engines._run_on_dask(Client(1), lambda: False, abs, NUMBERS))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("", "contains no address"),
        ("[]", "contains no address"),
        ('{"address": 3}', "contains no address"),
        ('{"address": ""}', "contains no address"),
    ],
)
def test_a_scheduler_file_without_an_address_fails_immediately(content, reason, tmp_path):
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    with (
        pytest.raises(UsageError, match=rf"--scheduler .*scheduler\.json: {reason}; name the file"),
        engines.open_engine("dask", workers=1, scheduler=str(file), stop_requested=lambda: False),
    ):
        pass


class Ray:
    """Ray cluster with the given nodes at each call, in order; the last ones stay."""

    exceptions = types.SimpleNamespace(
        RayTaskError=KeyError,
        WorkerCrashedError=ChildProcessError,
        NodeDiedError=ConnectionError,
        OutOfMemoryError=MemoryError,
    )

    def __init__(self, *nodes: list[dict[str, object]], busy: int = 0) -> None:
        self.remaining = list(nodes)
        self.busy = busy

    def nodes(self) -> list[dict[str, object]]:
        return self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]

    def remote(self, **_):
        return lambda function: types.SimpleNamespace(remote=lambda *task: (function, task))

    def wait(self, references, timeout):
        time.sleep(0.01)
        self.busy -= 1
        alive = any(
            node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in self.remaining[0]
        )
        return (references[:1] if alive and self.busy < 0 else []), references

    def get(self, reference):
        function, task = reference
        return function(*task)


def node(*, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"memory": 1e9, **resources}}


NUMBERS = [(-n,) for n in range(5)]


def numbers(ended) -> list[int]:
    return sorted(item.result for item in ended if isinstance(item, Completed))


@pytest.mark.parametrize(
    "left",
    [[], [node()], [node(alive=False, CPU=4)], [node(CPU=0.5), node(CPU=0.5)]],
    ids=["none", "head", "dead", "small"],
)
def test_a_ray_cluster_without_cpus_ends_the_run(left):
    ended = engines._run_on_ray(Ray([node(CPU=1)], left), lambda: False, abs, NUMBERS)
    with pytest.raises(UsrganError, match="no node of the cluster has a CPU"):
        list(ended)


def test_a_ray_cluster_without_nodes_yet_gets_tasks_and_continues():
    later = [[node()]] * 3 + [[node(), node(CPU=2)], [node()], [node(), node(CPU=1)]]
    ended = engines._run_on_ray(Ray(*later), lambda: False, abs, NUMBERS)
    assert numbers(ended) == list(range(5))


def test_a_busy_ray_cluster_is_waited_for():
    ended = engines._run_on_ray(Ray([node(CPU=1)], busy=12), lambda: False, abs, NUMBERS)
    assert numbers(ended) == list(range(5))


@pytest.mark.parametrize("name", ["WorkerCrashedError", "NodeDiedError", "OutOfMemoryError"])
def test_a_task_that_kills_ray_workers_or_nodes_is_crashed(name):
    def kill(number: int) -> int:
        if number == 2:
            raise getattr(Ray.exceptions, name)
        return number

    ended = list(engines._run_on_ray(Ray([node(CPU=1)]), lambda: False, kill, [(1,), (2,), (3,)]))
    assert numbers(ended) == [1, 3]
    assert Crashed((2,)) in ended
