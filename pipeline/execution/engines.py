"""Who runs the units: processes of this machine, a Dask cluster, or a Ray cluster.

All give the same: for each unit, in the order in which they end, `pool.Completed` or `pool.Crashed`. An
engine carries names and numbers; the folders of photos and shards must be the same paths everywhere.
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
"""`run(function, units)`: calls `function(*unit)` for every unit."""
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 60
"""Time in seconds that a cluster may be without a worker, at the start or later."""
_WORKER_TIMEOUT_SECONDS = 900
"""The same for Ray, where nodes come when units wait for them: its autoscaler gives each so long to start."""


@contextlib.contextmanager
def open_engine(
    name: Engine, *, workers: int, scheduler: str, stopping: Callable[[], bool]
) -> Iterator[RunTasks]:
    """Connect to a cluster, or start one of `workers` processes here where none is named.

    Raises:
        UsageError: the engine is not installed, or no cluster answers.
    """
    if name == "local":
        yield functools.partial(pool.run_tasks, workers=workers, stopping=stopping)
    elif name == "dask":
        with _dask_client(workers, scheduler) as client:
            yield functools.partial(_run_on_dask, client, stopping)
    else:
        with _open_ray(workers, scheduler) as ray:
            yield functools.partial(_run_on_ray, ray, stopping)


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
    """Where the scheduler is that wrote this file; Dask itself would wait for one that is not there for ever."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_SchedulerFile).address
    except (OSError, msgspec.DecodeError) as error:
        reason = getattr(error, "strerror", None) or "holds no address"
        raise UsageError(
            f"--scheduler {file}: {reason}; name the file of `dask scheduler --scheduler-file`"
        ) from None


def _run_on_dask(
    client: Any,  # noqa: ANN401  Dask ships no types
    stopping: Callable[[], bool],
    function: Callable[..., Result],
    units: Sequence[Arguments],
) -> Iterator[Completed[Result] | Crashed]:
    """A unit that killed several workers (`distributed.scheduler.allowed-failures`) has died.

    Raises:
        UsrganError: no worker is left, and none came for a while; or the scheduler is gone.
    """
    import distributed

    asking = functools.partial(_wait_for_dask, client.scheduler.address)
    waiting = list(reversed(units))
    under_way: dict[Any, Arguments] = {}
    seen = time.monotonic()
    try:
        while waiting or under_way:
            _check_stop(stopping)
            with asking():
                threads = sum(client.nthreads().values())
            seen = time.monotonic() if threads else seen
            if time.monotonic() - seen > _WAIT_SECONDS:
                raise UsrganError(
                    "--engine dask: the cluster has no workers any more (did their job reach its time limit?);"
                    " start some and run the same command again to resume"
                )
            width = 2 * max(1, threads)
            while waiting and len(under_way) < width:
                unit = waiting.pop()
                under_way[client.submit(function, *unit, pure=False)] = unit
            with asking(), contextlib.suppress(TimeoutError):
                distributed.wait(
                    list(under_way), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED"
                )
            for future in [each for each in under_way if each.done()]:
                unit = under_way.pop(future)
                # then the exception is the unit's own, and is here
                failed = future.status == "error"
                try:
                    with contextlib.nullcontext() if failed else asking():
                        result = future.result()
                except distributed.KilledWorker:
                    yield Crashed(unit)
                else:
                    yield Completed(unit, result)
    finally:
        with contextlib.suppress(OSError):  # the scheduler is gone, and its units with it
            client.cancel(list(under_way))


@contextlib.contextmanager
def _wait_for_dask(address: str) -> Iterator[None]:
    """A scheduler that does not answer, or has forgotten its units, in one line."""
    import distributed

    try:
        yield
    except (OSError, distributed.CancelledError) as error:
        # it tries to come back until it is closed, and then logs a traceback of that
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
    here: dict[str, Any] = {} if scheduler else {"num_cpus": max(1, workers)}
    try:
        ray.init(
            address=scheduler or "local", log_to_driver=False, configure_logging=False,
            include_dashboard=None if scheduler else False, **here,
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
    ray: Any,  # noqa: ANN401  imported where it is used
    stopping: Callable[[], bool],
    function: Callable[..., Result],
    units: Sequence[Arguments],
) -> Iterator[Completed[Result] | Crashed]:
    """A unit that killed several workers, or the nodes they were on, has died.

    Raises:
        UsrganError: no node can run a unit, and none came for a while.
    """
    killed = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    )
    remote = ray.remote(max_retries=pool.TRIES_ALONE)(function)
    waiting = list(reversed(units))
    under_way: dict[Any, Arguments] = {}
    seen = time.monotonic()
    while waiting or under_way:
        _check_stop(stopping)
        places = _count_ray_slots(ray)
        seen = time.monotonic() if places else seen
        if time.monotonic() - seen > _WORKER_TIMEOUT_SECONDS:
            raise UsrganError(
                "--engine ray: no node of the cluster has a CPU for units (did their job reach its time limit?);"
                " add some and run the same command again to resume"
            )
        width = 2 * max(1, places)  # also where no node is: an autoscaler looks at what waits
        while waiting and len(under_way) < width:
            unit = waiting.pop()
            under_way[remote.remote(*unit)] = unit
        ended, _ = ray.wait(list(under_way), timeout=_POLL_SECONDS)
        for reference in ended:
            unit = under_way.pop(reference)
            try:
                yield Completed(unit, ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except killed:
                yield Crashed(unit)


def _count_ray_slots(ray: Any) -> int:  # noqa: ANN401  imported where it is used
    """How many units the living nodes can run at once, each on a CPU of one node, be they free or not."""
    return sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def _check_stop(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise Stopped("run the same command again to resume")
