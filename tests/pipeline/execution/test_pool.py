from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.execution import pool
from shards.errors import Stopped, WriteFailed


def square(number: int) -> int:
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once(number: int, mark: str) -> int:
    if number == 3 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def fail(number: int) -> int:
    raise WriteFailed(f"{number}: the disk is full")


def never() -> bool:
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_task_runs_once(workers):
    ended = list(
        pool.run_tasks(square, [(n,) for n in range(20)], workers=workers, stop_requested=never)
    )
    assert sorted(done.result for done in ended) == [n * n for n in range(20)]


def test_a_task_that_crashes_its_process_is_named_and_the_others_complete():
    ended = list(
        pool.run_tasks(die_at_three, [(n,) for n in range(9)], workers=2, stop_requested=never)
    )
    died = [end.task for end in ended if isinstance(end, pool.Crashed)]
    done = sorted(end.result for end in ended if isinstance(end, pool.Completed))
    assert died == [(3,)]
    assert done == [n * n for n in range(9) if n != 3]


def test_a_process_killed_once_loses_nothing(tmp_path):
    tasks = [(n, str(tmp_path / "mark")) for n in range(9)]
    ended = list(pool.run_tasks(die_once, tasks, workers=2, stop_requested=never))
    assert sorted(end.result for end in ended) == [n * n for n in range(9)]


def test_an_exception_of_a_task_is_raised():
    with pytest.raises(WriteFailed, match="the disk is full"):
        list(pool.run_tasks(fail, [(1,), (2,)], workers=2, stop_requested=never))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_request_ends_the_run_between_tasks(workers):
    ended: list[object] = []
    run = pool.run_tasks(
        square, [(n,) for n in range(50)], workers=workers, stop_requested=lambda: len(ended) > 3
    )
    with pytest.raises(Stopped):
        ended.extend(run)
    assert 4 <= len(ended) < 50


def blas_threads() -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


def test_only_workers_are_limited_to_one_blas_thread():
    before = dict(os.environ)
    ended = list(pool.run_tasks(blas_threads, [()], workers=1, stop_requested=never))
    assert [done.result for done in ended] == [before.get("OPENBLAS_NUM_THREADS", "1")]
    assert dict(os.environ) == before


def test_workers_do_not_run_the_calling_script(tmp_path):
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from pipeline.execution import pool\n"
        "print('begun', flush=True)\n"
        "done = pool.run_tasks(abs, [(-1,), (-2,)], workers=2, stop_requested=lambda: False)\n"
        "print(sorted(each.result for each in done), __spec__)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "begun\n[1, 2] None\n"


def process_id(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def test_a_pool_ends_while_an_idle_worker_holds_the_queue_lock():
    """A stopped worker that waits for work behaves like a killed one."""
    tasks, pids = [(n,) for n in range(6)], set()
    for count, done in enumerate(
        pool.run_tasks(process_id, tasks, workers=2, stop_requested=never), 1
    ):
        pids.add(done.result)
        if count == len(tasks):
            time.sleep(0.2)  # until both workers wait
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(20)
    signal.alarm(0)
    assert len(pids) == 2


def _too_long(*_: object) -> None:
    raise TimeoutError
