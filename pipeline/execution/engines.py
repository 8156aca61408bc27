"""Engines that run tasks: processes of this machine, a Dask cluster, or a Ray cluster.

All yield `pool.Completed` or `pool.Crashed` for each task, in the order of completion. An engine transfers
only names and numbers, so photos and shards must have the same paths on every machine.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from pipeline.execution import pool
from pipeline.execution.pool import Arguments, Completed, Crashed
from shards.errors import Stopped, UsageError, UsrganError

Engine = Literal["local", "dask", "ray"]
Result = TypeVar("Result")
RunTasks = Callable[[Callable[..., Any], Sequence[Arguments]], Iterator[Completed[Any] | Crashed]]
"""`run(function, tasks)`: calls `function(*task)` for every task."""
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 60
"""Longest time that a Dask cluster may have no worker, seconds."""
_WORKER_TIMEOUT_SECONDS = 900
"""Longest time that a Ray cluster may have no CPU, seconds; its autoscaler needs this to start a node."""


@contextlib.contextmanager
def open_engine(
    name: Engine, *, workers: int, scheduler: str, stop_requested: Callable[[], bool]
) -> Iterator[RunTasks]:
    """Connect to a cluster, or start one of `workers` processes on this machine; yield its `run`.

    Raises:
        UsageError: the engine is not installed, or no cluster answers.
    """
    if name == "local":
        yield functools.partial(pool.run_tasks, workers=workers, stop_requested=stop_requested)
    elif name == "dask":
        with _dask_client(workers, scheduler) as client:
            yield functools.partial(_run_on_dask, client, stop_requested)
    else:
        with _open_ray(workers, scheduler) as ray:
            yield functools.partial(_run_on_ray, ray, stop_requested)


@contextlib.contextmanager
def _dask_client(workers: int, scheduler: str) -> Iterator[Any]:
    address = _scheduler_address(Path(scheduler)) if scheduler.endswith(".json") else scheduler
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "--engine dask: Dask is not installed; pip install 'usrgan[dask]'"
        ) from None
    with contextlib.ExitStack() as stack:
        try:
            cluster = address or stack.enter_context(
                distributed.LocalCluster(
                    n_workers=max(1, workers), threads_per_worker=1, dashboard_address=None
                )
            )
            client = distributed.Client(cluster, timeout=_WAIT_SECONDS)
            stack.enter_context(client)
            client.wait_for_workers(1, timeout=_WAIT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(
                f"--scheduler {scheduler}: no Dask cluster with workers answers ({error}); check the address"
            ) from None
        yield client


class _SchedulerFile(msgspec.Struct):
    address: Annotated[str, msgspec.Meta(min_length=1)]


def _scheduler_address(file: Path) -> str:
    """Return the address in a scheduler file; Dask itself would wait forever for a missing file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_SchedulerFile).address
    except (OSError, msgspec.DecodeError) as error:
        reason = getattr(error, "strerror", None) or "contains no address"
        raise UsageError(
            f"--scheduler {file}: {reason}; name the file of `dask scheduler --scheduler-file`"
        ) from None


def _run_on_dask(
    client: Any,  # noqa: ANN401  Dask ships no types
    stop_requested: Callable[[], bool],
    function: Callable[..., Result],
    tasks: Sequence[Arguments],
) -> Iterator[Completed[Result] | Crashed]:
    """Run tasks on Dask; one that killed several workers (`distributed.scheduler.allowed-failures`) is crashed.

    Raises:
        UsrganError: the cluster had no worker for too long, or the scheduler is gone.
    """
    import distributed

    guard = functools.partial(_wrap_dask_errors, client.scheduler.address)
    waiting = list(reversed(tasks))
    running: dict[Any, Arguments] = {}
    last_worker = time.monotonic()
    try:
        while waiting or running:
            _check_stop(stop_requested)
            with guard():
                threads = sum(client.nthreads().values())
            last_worker = time.monotonic() if threads else last_worker
            if time.monotonic() - last_worker > _WAIT_SECONDS:
                raise UsrganError(
                    "--engine dask: the cluster has no workers left (did their job reach its time limit?);"
                    " start some and run the same command again to resume"
                )
            limit = 2 * max(1, threads)
            while waiting and len(running) < limit:
                task = waiting.pop()
                running[client.submit(function, *task, pure=False)] = task
            with guard(), contextlib.suppress(TimeoutError):
                distributed.wait(
                    list(running), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED"
                )
            for future in [future for future in running if future.done()]:
                task = running.pop(future)
                # the exception of a failed task is its own, not the scheduler's
                failed = future.status == "error"
                try:
                    with contextlib.nullcontext() if failed else guard():
                        result = future.result()
                except distributed.KilledWorker:
                    yield Crashed(task)
                else:
                    yield Completed(task, result)
    finally:
        with contextlib.suppress(OSError):  # the scheduler and its tasks may be gone
            client.cancel(list(running))


@contextlib.contextmanager
def _wrap_dask_errors(address: str) -> Iterator[None]:
    """Turn errors of a scheduler that does not answer, or has lost its tasks, into one line."""
    import distributed

    try:
        yield
    except (OSError, distributed.CancelledError) as error:
        # the client would try to reconnect until it is closed, and log a traceback
        logging.getLogger("distributed.client").disabled = True
        raise UsrganError(
            f"--engine dask: the Dask scheduler at {address} is gone; run the same command again to resume"
        ) from error


@contextlib.contextmanager
def _open_ray(workers: int, scheduler: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray: Ray is not installed; pip install 'usrgan[ray]'") from None
    resources: dict[str, Any] = {} if scheduler else {"num_cpus": max(1, workers)}
    try:
        ray.init(
            address=scheduler or "local", log_to_driver=False, configure_logging=False,
            include_dashboard=None if scheduler else False, **resources,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--scheduler {scheduler}: no Ray cluster answers ({error}); check the address"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _run_on_ray(
    ray: Any,  # noqa: ANN401  imported lazily
    stop_requested: Callable[[], bool],
    function: Callable[..., Result],
    tasks: Sequence[Arguments],
) -> Iterator[Completed[Result] | Crashed]:
    """Run tasks on Ray; one that killed several workers, or their nodes, is crashed.

    Raises:
        UsrganError: the cluster had no CPU for too long.
    """
    killed = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    )
    remote = ray.remote(max_retries=pool.TRIES_ALONE)(function)
    waiting = list(reversed(tasks))
    running: dict[Any, Arguments] = {}
    last_node = time.monotonic()
    while waiting or running:
        _check_stop(stop_requested)
        slots = _count_ray_slots(ray)
        last_node = time.monotonic() if slots else last_node
        if time.monotonic() - last_node > _WORKER_TIMEOUT_SECONDS:
            raise UsrganError(
                "--engine ray: no node of the cluster has a CPU left (did their job reach its time limit?);"
                " add some and run the same command again to resume"
            )
        limit = 2 * max(
            1, slots
        )  # at least 2 without a node, because autoscalers react to waiting tasks
        while waiting and len(running) < limit:
            task = waiting.pop()
            running[remote.remote(*task)] = task
        ended, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
        for reference in ended:
            task = running.pop(reference)
            try:
                yield Completed(task, ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except killed:
                yield Crashed(task)


def _count_ray_slots(ray: Any) -> int:  # noqa: ANN401  imported lazily
    """Return how many tasks the living nodes can run at once, one per CPU, free or not."""
    return sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def _check_stop(stop_requested: Callable[[], bool]) -> None:
    if stop_requested():
        raise Stopped("run the same command again to resume")
