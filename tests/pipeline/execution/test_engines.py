"""Real clusters of two processes on this machine make the same data set, even if one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.execution import engines
from pipeline.execution.pool import Completed, Crashed
from shards.errors import UsrganError
from shards.format import png
from tests.pipeline.support import make, make_photo, tree

pytestmark = pytest.mark.engines
OPTIONS = ["--patches-per-image", "24", "--samples-per-shard", "16", "--hr-size", "64", "--json"]
WORKERS = {"dask": "distributed.nanny", "ray": "ray::"}
MAIN = "from pipeline.cli import main\nif __name__ == '__main__': main()"


@pytest.fixture
def many(photos) -> Path:
    for number in range(40):
        (photos / f"{number}.png").write_bytes(png.encode_rgb(make_photo(100 + number)))
    return photos


def start(
    engine: str, photos: Path, out: Path, *more: str, main: str = MAIN
) -> subprocess.Popen[str]:
    script = out.with_suffix(".py")  # Dask's workers import the main module again
    script.write_text(main)
    command = [sys.executable, str(script), "--src", str(photos), "--out", str(out), *OPTIONS]
    return subprocess.Popen(
        [*command, "--engine", engine, "--workers", "2", *more], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(run: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, errors = run.communicate(timeout=180)
    assert run.returncode == code, errors
    return out, errors


def processes(session: int, name: str) -> list[int]:
    """Return living processes of a run whose command line contains `name`."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (int(fields[3]) == session or name == "ray::") and name in line and fields[0] != "Z":
                pids.append(int(folder.name))
    return pids


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_cluster_makes_the_same_data_set_as_one_machine(many, tmp_path, engine):
    make(many, tmp_path / "local")
    out, errors = finish(start(engine, many, tmp_path / "out"))
    assert json.loads(out)["pairs"]["train"] > 100
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    assert "Traceback" not in errors


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_killed_worker_changes_nothing(many, tmp_path, engine):
    make(many, tmp_path / "local")
    run = start(engine, many, tmp_path / "out")
    limit = time.monotonic() + 90
    while len(list(tmp_path.glob("out/_work/chunk-*.spill"))) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    victims = processes(run.pid, "multiprocessing" if engine == "dask" else "ray::")
    killed = 0
    for pid in victims[-1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    finish(run)
    assert killed == 1
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


@contextlib.contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[Path, subprocess.Popen]]:
    """Yield the scheduler file and process of a cluster with two workers."""
    file = folder / "scheduler.json"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host",
         "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file),
         "--nthreads", "1", "--nworkers", "2", "--no-dashboard"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not file.exists() and time.monotonic() < limit:
            time.sleep(0.1)
        yield file, scheduler
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


def test_an_existing_dask_cluster_is_used_by_address_and_by_file(many, tmp_path):
    make(many, tmp_path / "local")
    with dask_cluster(tmp_path) as (file, _):
        address = json.loads(file.read_text())["address"]
        for number, name in enumerate((str(file), address)):
            out = tmp_path / f"out{number}"
            finish(start("dask", many, out, "--scheduler", name))
            assert tree(out) == tree(tmp_path / "local")


def test_ctrl_c_stops_a_cluster_run_and_it_resumes_locally(many, tmp_path):
    make(many, tmp_path / "local")
    run = start("dask", many, tmp_path / "out")
    limit = time.monotonic() + 90
    while len(list(tmp_path.glob("out/_work/chunk-*.spill"))) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    _, errors = finish(run, code=75)
    assert "run the same command again" in errors.splitlines()[-1]
    make(many, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


def test_an_address_without_a_cluster_is_one_line(many, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "3s")
    run = start("dask", many, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    _, errors = finish(run, code=2)
    assert errors.splitlines()[-1].startswith(
        "error: --scheduler tcp://127.0.0.1:9: no Dask cluster"
    )


def test_a_cluster_that_lost_its_workers_ends_the_run(monkeypatch):
    import distributed

    monkeypatch.setattr(engines, "_WAIT_SECONDS", 2)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(1)
        tasks = [(0.01,), *[(0.5,)] * 40]
        ended = engines._run_on_dask(client, lambda: False, time.sleep, tasks)
        next(ended)
        cluster.scale(0)
        with pytest.raises(UsrganError, match="has no workers left"):
            list(ended)


def test_a_killed_dask_scheduler_ends_the_run_and_it_resumes(many, tmp_path):
    make(many, tmp_path / "local")
    with dask_cluster(tmp_path) as (file, scheduler):
        run = start("dask", many, tmp_path / "out", "--scheduler", str(file))
        limit = time.monotonic() + 60
        while len(list(tmp_path.glob("out/_work/chunk-*.spill"))) < 3 and time.monotonic() < limit:
            time.sleep(0.005)
        scheduler.kill()
        _, errors = finish(run, code=1)
    address = json.loads(file.read_text())["address"]
    assert f"error: --engine dask: the Dask scheduler at {address} is gone" in errors
    assert "Traceback" not in errors
    make(many, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


def test_a_ray_cluster_that_lost_its_nodes_ends_the_run_and_it_resumes(many, tmp_path):
    from ray.cluster_utils import Cluster

    make(many, tmp_path / "local")
    impatient = MAIN.replace(
        "\n", "\nfrom pipeline.execution import engines\nengines._WORKER_TIMEOUT_SECONDS = 3\n"
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        worker = cluster.add_node(num_cpus=1)
        address = ["--scheduler", cluster.address]
        run = start("ray", many, tmp_path / "out", *address, main=impatient)
        limit = time.monotonic() + 90
        while len(list(tmp_path.glob("out/_work/chunk-*.spill"))) < 3 and time.monotonic() < limit:
            time.sleep(0.005)
        cluster.remove_node(worker)
        _, errors = finish(run, code=1)
        assert errors.splitlines()[-1].startswith("error: --engine ray: no node of the cluster")
        assert "Traceback" not in errors
        assert (tmp_path / "out" / "_work").is_dir()
        again = start("ray", many, tmp_path / "out", *address, main=impatient)
        cluster.add_node(num_cpus=1)
        finish(again)
    finally:
        cluster.shutdown()
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


def test_a_task_that_loses_its_ray_node_repeatedly_is_crashed_and_the_others_complete(tmp_path):
    from ray.cluster_utils import Cluster

    def task(started: str, seconds: int) -> None:
        with open(started, "a") as stream:
            stream.write(".")
        time.sleep(seconds)

    slow, fast = (str(tmp_path / "slow"), 600), (str(tmp_path / "fast"), 0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1)]

    def take_the_node_of_each_start() -> bool:
        if (tmp_path / "slow").exists() and len((tmp_path / "slow").read_text()) == len(nodes):
            cluster.remove_node(nodes[-1])
            nodes.append(cluster.add_node(num_cpus=1))
        return False

    try:
        with engines._open_ray(0, cluster.address) as ray:
            ended = list(engines._run_on_ray(ray, take_the_node_of_each_start, task, [slow, fast]))
    finally:
        cluster.shutdown()
    assert sorted(item.task for item in ended if isinstance(item, Crashed)) == [slow]
    assert sorted(item.task for item in ended if isinstance(item, Completed)) == [fast]
    assert len(nodes) == 1 + 1 + 2  # the first attempt and two retries
