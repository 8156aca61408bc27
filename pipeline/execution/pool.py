"""Local worker processes that may crash without ending the run.

`multiprocessing.Pool` hangs when a worker is killed. `ProcessPoolExecutor` fails at once; the tasks that were
running then run again, each alone, which identifies the one that crashes its process.
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
"""Attempts of a task in a process of its own before it counts as crashed."""
_POLL_SECONDS = 0.2
_ENVIRONMENT = {
    # the processes occupy all cores; extra BLAS threads would compete with them
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc reuses the memory of one photo for the next; page faults took a third of the system time
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


class Completed(NamedTuple, Generic[Result]):
    """A task that returned."""

    task: Arguments
    result: Result


class Crashed(NamedTuple):
    """A task that crashed every process that ran it."""

    task: Arguments


def run_tasks(
    function: Callable[..., Result],
    tasks: Sequence[Arguments],
    *,
    workers: int,
    stop_requested: Callable[[], bool],
) -> Iterator[Completed[Result] | Crashed]:
    """Call `function(*task)` for every task; yield the results in the order of completion.

    Tasks are idempotent. With 0 workers they run in this process. An exception of the function ends the run after
    the running tasks; so does `stop_requested()`.

    Raises:
        Stopped: `stop_requested()` returned True; all yielded tasks are complete.
    """
    if workers == 0:
        for task in tasks:
            _check_stop(stop_requested)
            yield Completed(task, function(*task))
        return
    suspects: list[Arguments] = []
    waiting = list(reversed(tasks))
    while waiting:
        yield from _run_until_crash(
            function, waiting, suspects, workers=workers, stop_requested=stop_requested
        )
        while suspects:
            yield _run_alone(function, suspects.pop(), stop_requested=stop_requested)


def _run_until_crash(
    function: Callable[..., Result],
    waiting: list[Arguments],
    suspects: list[Arguments],
    *,
    workers: int,
    stop_requested: Callable[[], bool],
) -> Iterator[Completed[Result]]:
    """Run `waiting` until it is empty or a process crashes; `suspects` then gets the tasks that were running."""
    running: dict[Future[Result], Arguments] = {}
    with _open_executor(workers) as pool:
        try:
            while waiting or running:
                _check_stop(stop_requested)
                while waiting and len(running) < 2 * workers:
                    running[pool.submit(function, *waiting[-1])] = waiting[-1]
                    waiting.pop()
                ended, _ = wait(running, _POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in ended:
                    task = running[future]
                    result = future.result()
                    del running[future]
                    yield Completed(task, result)
        except BrokenProcessPool:
            for future, task in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    yield Completed(task, future.result())
                else:
                    suspects.append(task)
        except BaseException:
            for future in running:
                future.cancel()
            wait(running)
            raise


def _run_alone(
    function: Callable[..., Result], task: Arguments, *, stop_requested: Callable[[], bool]
) -> Completed[Result] | Crashed:
    for _ in range(TRIES_ALONE):
        _check_stop(stop_requested)
        with _open_executor(1) as pool:
            try:
                return Completed(task, pool.submit(function, *task).result())
            except BrokenProcessPool:
                continue
    return Crashed(task)


def start_fork_server() -> None:
    """Start the process from which workers fork; it imports their modules in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["pipeline.stages.tasks", "numpy.random"]
    )
    with limit_to_one_core():
        # Only the parent handles Ctrl-C. Block it until the server ignores it, or it would interrupt the
        # imports there; start the resource tracker first, because the server would start it unblocked.
        multiprocessing.resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def limit_to_one_core() -> Iterator[None]:
    """Start no BLAS threads in processes and imports inside this context; restore the environment."""
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

    A waiting worker holds the lock of the queue. If something else kills it, the other workers wait for the lock
    forever, and the pool waits for them.
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
    """Start processes inside this context without importing the calling script.

    They would import it to find its functions, but no task uses these. The import of a whole command line is slow,
    and a script without a `__main__` guard would start a run in each worker. `multiprocessing.spawn` skips a
    main module whose spec has the name `__main__`.
    """
    script = sys.modules["__main__"]
    before = script.__spec__
    script.__spec__ = importlib.machinery.ModuleSpec("__main__", None)
    try:
        yield
    finally:
        script.__spec__ = before


def _initialise_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent does."""
    gc.freeze()  # modules imported by the server are never garbage
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit with the parent; an idle worker would wait forever, because it also holds its pipe's other end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _check_stop(stop_requested: Callable[[], bool]) -> None:
    if stop_requested():
        raise Stopped("run the same command again to resume")
