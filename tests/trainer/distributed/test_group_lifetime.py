"""A rank that fails before, while or after the ranks join ends all ranks within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore

from tests.trainer.distributed.support import find_free_port
from tests.trainer.support import arguments
from trainer.distributed import launcher
from trainer.distributed.heartbeat import Heartbeat
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.rendezvous import JOINED, have_all_reached, host_store

SECONDS = 15.0
"""Time limit of each test, of which most is the start of the processes."""
MODULE = "tests.trainer.distributed.faulty_rank"
MESSAGES = {
    "option": "optim.typo",
    "usage": "--no-such-option",
    "shards": "/no/such/folder",
    "opening": "fault of the test",
    "killed": "rank 1",
    "training": "fault of the test",
}
CODES = {"option": 2, "usage": 2, "shards": 2}


def faulty(fault: str, rank: int = 1) -> dict[str, str]:
    """Environment of ranks of which one has a fault."""
    variables = {"FAULT": fault, "FAULTY_RANK": str(rank), "USRGAN_RANK_TIMEOUT": "3"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start_rank(shards: Path, out: Path, rank: int, environment: dict[str, str], port: int):
    """Start one of two ranks as a user does who sets the environment variables."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", MODULE, *arguments(shards, out, "--stage", "psnr")]
    return start(command, environment | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})


def end_all(processes: list[subprocess.Popen[str]], *, seconds: float = SECONDS) -> list[str]:
    """Return what the processes print until they end; kill those that do not."""
    deadline = time.monotonic() + seconds
    try:
        return [each.communicate(timeout=deadline - time.monotonic())[1] for each in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # also closes the pipe


def cases(*quick: str) -> list[object]:
    """All faults; the others are slow."""
    return [
        fault if fault in quick else pytest.param(fault, marks=pytest.mark.slow)
        for fault in MESSAGES
        if fault != "usage"
    ]


@pytest.mark.parametrize("fault", cases("option", "shards", "opening"))
def test_ranks_of_environment_variables_end_together(tiny_shards, tmp_path, fault):
    port, environment = find_free_port(), faulty(fault)
    ranks = [
        start_rank(tiny_shards, tmp_path / "run", rank, environment, port) for rank in range(2)
    ]
    errors = "".join(end_all(ranks, seconds=20 if fault == "killed" else SECONDS))
    code = CODES.get(fault, 1)
    assert ranks[0].returncode == code, errors
    assert ranks[1].returncode == (code if fault != "killed" else -signal.SIGKILL), errors
    assert errors.count("error:") == 1, errors
    assert MESSAGES[fault] in errors


@pytest.mark.parametrize("fault", ["option", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_failure_of_the_rank_that_hosts_the_store_reaches_the_others(
    tiny_shards, tmp_path, fault
):
    port, environment = find_free_port(), faulty(fault, rank=0)
    environment["USRGAN_RANK_TIMEOUT"] = "10"  # time to start for rank 1
    ranks = [
        start_rank(tiny_shards, tmp_path / "run", rank, environment, port) for rank in range(2)
    ]
    errors = "".join(end_all(ranks))
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    assert errors.count("error:") == 1, errors
    assert MESSAGES[fault] in errors


@pytest.mark.parametrize("fault", [*cases("shards"), pytest.param("usage", marks=pytest.mark.slow)])
def test_ranks_of_the_launcher_end_together(tiny_shards, tmp_path, fault, monkeypatch, capfd):
    for name, value in faulty(fault).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "_RANK_CODE", f"from {MODULE} import main; main()")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    began = time.monotonic()
    message = ""
    try:
        code = launcher.launch_ranks(
            arguments(tiny_shards, tmp_path / "run", "--stage", "psnr"), count=2
        )
    except launcher.UsrganError as error:  # which the command line prints
        code, message = error.exit_code, f"error: {error}"
    errors = message + capfd.readouterr().err
    assert code == CODES.get(fault, 1), errors
    assert time.monotonic() - began < SECONDS
    assert errors.count("rror:") == 1, errors
    assert MESSAGES[fault] in errors


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*cases(), "usage"])
def test_ranks_of_torchrun_end_together(tiny_shards, tmp_path, fault):
    options = ["--standalone", "--nproc-per-node", "2", "-m", MODULE]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += arguments(tiny_shards, tmp_path / "run", "--stage", "psnr")
    running = start(command, faulty(fault))
    (errors,) = end_all([running], seconds=2 * SECONDS)
    assert running.returncode == 1, errors
    assert MESSAGES[fault] in errors


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Wait until a process handles SIGTERM."""
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
        if mask >> (signal.SIGTERM - 1) & 1:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_ends_a_rank_that_waits_for_the_other(tiny_shards, tmp_path, rank):
    port = find_free_port()
    running = start_rank(tiny_shards, tmp_path / "run", rank, faulty("none"), port)
    wait_for_handler(running)
    if rank == 0:
        limit = timedelta(seconds=SECONDS)
        store = PrefixStore("usrgan/0", TCPStore("127.0.0.1", port, timeout=limit))
        store.wait([f"{JOINED}/0"], limit)
    else:
        time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    (errors,) = end_all([running])
    assert running.returncode == 75, errors
    assert errors.splitlines()[-1].startswith("stopped: stopped before all ranks started"), errors


def test_heartbeats_continue_while_torch_waits_for_a_key():
    store, _ = host_store()
    heartbeat = Heartbeat(store, ProcessGroup(), silence=60, print_error=print)

    def wait_in_torch() -> None:
        with pytest.raises(RuntimeError):
            store.wait(["never"], timedelta(seconds=3))

    waiting = threading.Thread(target=wait_in_torch)
    before = heartbeat.read_counters()
    waiting.start()
    time.sleep(2.5)
    after = heartbeat.read_counters()
    assert waiting.is_alive()
    waiting.join()
    heartbeat.stop()
    assert after[0] > before[0]


def test_no_rank_has_reached_a_state_that_none_announced():
    store, _ = host_store()
    assert have_all_reached(store, JOINED, world_size=1, first_rank=1)
    assert not have_all_reached(store, JOINED, world_size=1)
