"""Processes that may die without taking the run along.

`multiprocessing.Pool` hangs when a worker is killed; `ProcessPoolExecutor` fails at once, and then
the units that were under way run again, alone, so that the one which kills its process is known.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, NamedTuple, TypeVar

from shards.errors import Stopped

Arguments = tuple[object, ...]
Result = TypeVar("Result")
TRIES_ALONE = 2
"""Number of times that a task may crash a process of its own before it is given up."""
_POLL_SECONDS = 0.2
_ENVIRONMENT = {
    # processes take the cores: where BLAS makes threads as well, they spin against each other
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc keeps the memory of one photo for the next: a third of the system time is page faults
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


class Completed(NamedTuple, Generic[Result]):
    """A unit that returned."""

    unit: Arguments
    result: Result


class Crashed(NamedTuple):
    """A unit that killed every process it ran in."""

    unit: Arguments


def run_tasks(
    function: Callable[..., Result],
    units: Sequence[Arguments],
    *,
    workers: int,
    stopping: Callable[[], bool],
) -> Iterator[Completed[Result] | Crashed]:
    """Call `function(*unit)` for every unit, in the order in which they end.

    Units are idempotent. With 0 workers they run in this process. An exception of the function
    ends the run after the units under way; so does `stopping()`.

    Raises:
        Stopped: `stopping()` said so; what had been yielded is done.
    """
    if workers == 0:
        for unit in units:
            _check_stop(stopping)
            yield Completed(unit, function(*unit))
        return
    suspects: list[Arguments] = []
    waiting = list(reversed(units))
    while waiting:
        yield from _run_until_crash(function, waiting, suspects, workers=workers, stopping=stopping)
        while suspects:
            yield _run_alone(function, suspects.pop(), stopping=stopping)


def _run_until_crash(
    function: Callable[..., Result],
    waiting: list[Arguments],
    suspects: list[Arguments],
    *,
    workers: int,
    stopping: Callable[[], bool],
) -> Iterator[Completed[Result]]:
    """Work off `waiting` until it is empty or a process died; then `suspects` were under way."""
    under_way: dict[Future[Result], Arguments] = {}
    with _open_executor(workers) as pool:
        try:
            while waiting or under_way:
                _check_stop(stopping)
                while waiting and len(under_way) < 2 * workers:
                    under_way[pool.submit(function, *waiting[-1])] = waiting[-1]
                    waiting.pop()
                ended, _ = wait(under_way, _POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in ended:
                    unit = under_way[future]
                    result = future.result()
                    del under_way[future]
                    yield Completed(unit, result)
        except BrokenProcessPool:
            for future, unit in under_way.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    yield Completed(unit, future.result())
                else:
                    suspects.append(unit)
        except BaseException:
            for future in under_way:
                future.cancel()
            wait(under_way)
            raise


def _run_alone(
    function: Callable[..., Result], unit: Arguments, *, stopping: Callable[[], bool]
) -> Completed[Result] | Crashed:
    for _ in range(TRIES_ALONE):
        _check_stop(stopping)
        with _open_executor(1) as pool:
            try:
                return Completed(unit, pool.submit(function, *unit).result())
            except BrokenProcessPool:
                continue
    return Crashed(unit)


def start_fork_server() -> None:
    """Start the process that workers are forked from; it loads its modules in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["pipeline.stages.tasks", "numpy.random"]
    )
    with limit_to_one_core():
        # Ctrl-C is the parent's alone; until it is ignored there, it must not reach the imports. The
        # tracker, which the server starts if need be, would let it through again.
        multiprocessing.resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def limit_to_one_core() -> Iterator[None]:
    """Start no BLAS threads in processes and imports inside; restore the environment afterwards."""
    before = dict(os.environ)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in _ENVIRONMENT.keys() - before.keys():
            del os.environ[name]


@contextlib.contextmanager
def _open_executor(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool whose idle workers are killed at the end instead of being asked to exit.

    A waiting worker holds the lock of the queue. If something else kills it then, the others wait for that lock,
    and the pool for them, forever.
    """
    start_fork_server()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_initialise_worker)
    with _hide_calling_script():
        try:
            yield pool
        finally:
            for process in list(pool._processes.values()):
                if process.is_alive():
                    process.kill()
            pool.shutdown()


@contextlib.contextmanager
def _hide_calling_script() -> Iterator[None]:
    """Processes that start inside do not run the script that called us.

    They would, to find its functions; units are none of them. It costs the import of a whole command
    line, and a script without a `__main__` guard would start a run in each of its workers.
    `multiprocessing.spawn` skips a main module that says it is called `__main__`.
    """
    script = sys.modules["__main__"]
    before = script.__spec__
    script.__spec__ = importlib.machinery.ModuleSpec("__main__", None)
    try:
        yield
    finally:
        script.__spec__ = before


def _initialise_worker() -> None:
    """A worker leaves Ctrl-C to the parent, and dies with it."""
    gc.freeze()  # what the server imported is never garbage
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit with the parent: idle workers would otherwise wait forever on a pipe that they hold open themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _check_stop(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise Stopped("run the same command again to resume")
