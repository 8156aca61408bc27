"""Several processes of one command start, stop and end together, and one line reports the cause."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from shards.format.manifest import load_manifest
from shards.writer import publish
from tests.trainer.distributed.support import find_free_port
from tests.trainer.perceptual.support import random_weights
from tests.trainer.support import arguments, logged, spawn, train, weights
from trainer.distributed.launcher import launch_ranks
from trainer.weights.safetensors_io import load_tensors, save_tensors

LONG = ["--stage", "psnr", "--set", "epochs=2000", "--set", "precision=fp32"]
SHORT = [*LONG, "--set", "epochs=4"]
SAME = 1e-2
"""Tolerance relative to the largest weight: Adam amplifies the rounding of tiny gradients."""


def find_rank_pids(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the ranks, in rank order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return sorted(map(int, children))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def have_exited(pids: list[int], *, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def start_training(
    shards: Path, out: Path, *more: str, **environment: str
) -> subprocess.Popen[str]:
    """Start two ranks, and wait for their first checkpoint."""
    running = spawn(shards, out, *LONG, "--gpus", "2", *more, **environment)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints/last").glob("*.safetensors")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return running


def has_close_weights(one: Path, other: Path) -> bool:
    pairs = [load_tensors(run / "checkpoints/final/psnr.safetensors")[0] for run in (one, other)]
    return all(
        (value - pairs[1][name]).abs().max() <= SAME * value.abs().max()
        for name, value in pairs[0].items()
    )


def test_two_processes_stop_together_and_one_resumes(tiny_shards, tmp_path):
    running = start_training(tiny_shards, tmp_path / "run")
    running.send_signal(signal.SIGUSR1)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors
    assert errors.count("stopped:") == 1
    assert "saved at" in errors.splitlines()[-1]
    result = train(tiny_shards, tmp_path / "run", *LONG, "--dry-run")
    assert "nothing was trained" in result.stdout


def test_one_process_then_two_then_one_end_as_one_alone(tiny_shards, tmp_path):
    constant = ["--set", "optim.schedule=constant"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny_shards, run, *SHORT, *constant, "--set", "epochs=1")
    two = spawn(tiny_shards, run, *SHORT, *constant, "--set", "epochs=3", "--gpus", "2", "--json")
    out, errors = two.communicate(timeout=120)
    assert two.returncode == 0, errors
    assert out.count('"run"') == 1
    assert "resuming at 16 patches" in errors
    train(tiny_shards, run, *SHORT, *constant)
    train(tiny_shards, whole, *SHORT, *constant)
    assert has_close_weights(run, whole)
    pairs = [(row["val_psnr_y"], row["loss_pixel"]) for row in logged(run)]
    wanted = [(row["val_psnr_y"], row["loss_pixel"]) for row in logged(whole)]
    assert pairs == [pytest.approx(each, rel=1e-3) for each in wanted]


def test_a_killed_rank_ends_the_job_with_its_name_and_no_orphans(tiny_shards, tmp_path):
    running = start_training(tiny_shards, tmp_path / "run")
    pids = find_rank_pids(running)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert time.monotonic() - began < 30
    assert f"rank 1 (pid {pids[1]}) was ended by SIGKILL" in errors.splitlines()[-1]
    assert errors.count("error:") == 1
    assert have_exited(pids, within=5)


def test_ranks_import_nothing_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    for name in ("trainer.py", "random.py"):
        Path(name).write_text("raise SystemExit(3)")
    assert launch_ranks(["--version"], count=1) == 0


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_with_its_name(tiny_shards, tmp_path):
    running = start_training(tiny_shards, tmp_path / "run", USRGAN_RANK_TIMEOUT="3")
    pids = find_rank_pids(running)
    os.kill(pids[1], signal.SIGSTOP)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    said = errors.splitlines()[-1]
    assert "rank 1 (on " in said
    assert f"pid {pids[1]}) has sent no heartbeat for 3 s" in said
    assert have_exited(pids, within=5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_two_processes_that_are_killed_again_and_again_end_bit_equal(tiny_shards, tmp_path, stage):
    """Not only the order of the samples: gloo adds up in one order, too."""
    start = tmp_path / "start"
    train(tiny_shards, start, "--stage", "psnr", "--set", "epochs=1")
    options = ["--stage", stage, "--init", str(start / "checkpoints/final/psnr.safetensors")]
    options += ["--set", "epochs=8", "--gpus", "2"]
    rng = random.Random(3)
    for _ in range(4):
        running = spawn(tiny_shards, tmp_path / "run", *options)
        assert running.stderr is not None
        for line in running.stderr:
            if "deviates" in line:
                break
        time.sleep(rng.uniform(0, 1.5))
        os.kill(rng.choice(find_rank_pids(running)), signal.SIGKILL)
        running.communicate(timeout=60)
        assert running.returncode == 1
    for run in ("run", "whole"):
        running = spawn(tiny_shards, tmp_path / run, *options)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == 0, errors
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_ranks_do_not_outlive_their_launcher(tiny_shards, tmp_path):
    running = start_training(tiny_shards, tmp_path / "run")
    pids = find_rank_pids(running)
    running.kill()
    _, errors = running.communicate(timeout=60)
    assert have_exited(pids, within=20)
    assert "the job's store is gone" in errors


@pytest.mark.slow
def test_an_error_of_one_rank_is_printed_once_and_ends_all(tiny_shards, tmp_path):
    running = start_training(tiny_shards, tmp_path / "run")
    shard = tiny_shards / "train-000001.tar"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:3000] + bytes(len(content) - 3000))
        _, errors = running.communicate(timeout=60)
    finally:
        shard.write_bytes(content)
    assert running.returncode == 1
    assert errors.count("error:") in (1, 2)  # both may meet a damaged sample in the same step
    assert "train-000001.tar" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_whole_group_stop_once(tiny_shards, tmp_path, number):
    running = start_training(tiny_shards, tmp_path / "run")
    for pid in [running.pid, *find_rank_pids(running)]:
        os.kill(pid, number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--no-python", *options, sys.executable]


COMMAND = ["-c", "from trainer.cli import train_main; train_main()"]


@pytest.mark.slow
def test_torchrun_starts_again_from_the_last_checkpoint(tiny_shards, tmp_path):
    out = tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    settings = [*SHORT, "--set", "epochs=40", "--set", "checkpoint.keep=99"]
    running = subprocess.Popen(
        [*torchrun(*options), *COMMAND, *arguments(tiny_shards, out, *settings)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while len(list((out / "checkpoints/last").glob("*.safetensors"))) < 3:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    os.kill(find_rank_pids(running)[1], signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert "rank 1 (on " in errors  # torchrun's own messages follow
    assert "resuming at" in errors
    train(tiny_shards, tmp_path / "whole", *settings)
    assert [row["patches_seen"] for row in logged(out)] == [
        row["patches_seen"] for row in logged(tmp_path / "whole")
    ]


@pytest.mark.slow
def test_torchrun_forwards_the_signal_of_slurm(tiny_shards, tmp_path):
    """The command is that of docs/guide/training.md."""
    options = ["--standalone", "--nproc-per-node", "2", "--signals-to-handle", "SIGTERM,SIGUSR1"]
    out = tmp_path / "run"
    running = subprocess.Popen(
        [*torchrun(*options), *COMMAND, *arguments(tiny_shards, out, *LONG)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list((out / "checkpoints/last").glob("*.safetensors")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    _, errors = running.communicate(timeout=60)
    assert errors.count("stopped:") == 1, errors
    assert running.returncode == 1


@pytest.mark.slow
def test_two_machines_train_as_one_without_sharing_a_run_folder(tiny_shards, tmp_path):
    """Two loopback addresses stand for two machines; the run folder of the second stays empty."""
    end = f"127.0.0.1:{find_free_port()}"
    nodes = []
    for rank, address in enumerate(("127.0.0.1", "127.0.0.2")):
        options = [
            "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--rdzv-backend",
            "c10d", "--rdzv-endpoint", end, "--rdzv-id", "test", "--local-addr", address,
        ]  # fmt: skip
        nodes.append(
            subprocess.Popen(
                [
                    *torchrun(*options),
                    *COMMAND,
                    *arguments(tiny_shards, tmp_path / f"{rank}", *SHORT),
                ],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            )
        )
    errors = [node.communicate(timeout=180)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    train(tiny_shards, tmp_path / "whole", *SHORT)
    runs = [tmp_path / str(rank) for rank in range(2) if (tmp_path / str(rank)).exists()]
    assert len(runs) == 1
    assert has_close_weights(runs[0], tmp_path / "whole")


@pytest.mark.parametrize(
    "odd",
    [
        "--shards",
        *(
            pytest.param(odd, marks=pytest.mark.slow)
            for odd in ("psnr.optim.lr", "--stage", "--lpips")
        ),
    ],
)
def test_machines_with_different_options_do_not_train(tiny_shards, tmp_path, odd):
    copied = tmp_path / "shards"
    shutil.copytree(tiny_shards, copied)
    if odd == "--shards":
        (copied / "train-000001.tar").write_bytes((copied / "train-000000.tar").read_bytes())
        shard = copied / "index/train-000001.npz"
        shard.write_bytes((copied / "index/train-000000.npz").read_bytes())
        manifest = load_manifest(copied)
        train_split = manifest.splits["train"]
        twice = tuple(
            msgspec.structs.replace(train_split.shards[0], name=each.name)
            for each in train_split.shards
        )
        splits = manifest.splits | {"train": msgspec.structs.replace(train_split, shards=twice)}
        publish(copied, msgspec.structs.replace(manifest, splits=splits))
    network = tmp_path / "alexnet.safetensors"
    save_tensors(network, random_weights("alexnet"), {})
    more = {
        "psnr.optim.lr": ["--set", "optim.lr=1e-3"],
        "--stage": ["--stage", "both"],
        "--lpips": ["--lpips", str(network)],
    }
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    running = [
        spawn(
            tiny_shards if rank == 0 else copied, tmp_path / f"{rank}", *SHORT,
            *(more.get(odd, []) if rank else []), RANK=str(rank), LOCAL_RANK="0", **place,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [each.communicate(timeout=60)[1] for each in running]
    assert running[1].returncode == 2, errors
    assert running[0].returncode
    assert f"error: rank 1: {odd} is " in errors[1], errors
    assert not list(tmp_path.glob("*/checkpoints/last/*"))
