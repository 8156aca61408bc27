"""A run that was killed ends with the bits of one that was not."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.trainer.support import logged, spawn, train, weights
from tests.trainer.training.support import build_gan_state, make_batch
from trainer.training.state import state_tensors
from trainer.training.step import train_step


@pytest.fixture(scope="module")
def uninterrupted(tiny_shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_shards, run, "--stage", "both", figures=True)
    return run


FEW = [140]
ALL = [pytest.param(n, marks=pytest.mark.slow) for n in range(1, 180) if n not in FEW]


@pytest.mark.parametrize("operation", [*FEW, *ALL])
def test_training_killed_at_an_operation_resumes_bit_equal(
    tiny_shards, tmp_path, uninterrupted, operation
):
    run = tmp_path / "run"
    killed = spawn(tiny_shards, run, "--stage", "both", USRGAN_FAULT=f"kill@{operation}")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    train(tiny_shards, run, "--stage", "both")
    assert weights(run) == weights(uninterrupted)
    assert logged(run) == logged(uninterrupted)


@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        ("gan", 1),
        pytest.param("psnr", 20, marks=pytest.mark.slow),
        pytest.param("gan", 20, marks=pytest.mark.slow),
    ],
)
def test_training_killed_at_random_moments_ends_bit_equal(
    tiny_shards, tmp_path, uninterrupted, stage, kills
):
    start = str(uninterrupted / "checkpoints/final/psnr.safetensors")
    epochs = 2 + kills * (4 if stage == "psnr" else 1)  # enough that most kills find it at work
    options = ["--stage", stage, "--init", start, "--set", f"epochs={epochs}"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    rng = random.Random(kills)
    died = 0
    for _ in range(kills):
        running = spawn(tiny_shards, run, *options)
        assert running.stderr is not None
        for line in running.stderr:
            if "deviates" in line:
                break
        time.sleep(rng.uniform(0, 0.6))
        running.kill()
        running.communicate()
        died += running.returncode == -signal.SIGKILL
    assert died > kills // 2  # the rest had ended before
    train(tiny_shards, run, *options)
    train(tiny_shards, whole, *options)
    assert weights(run) == weights(whole)
    assert logged(run) == logged(whole)


def test_sigterm_saves_exits_75_and_resumes_bit_equal(tiny_shards, tmp_path, uninterrupted):
    run = tmp_path / "run"
    running = spawn(tiny_shards, run, "--stage", "both")
    assert running.stderr is not None
    for line in running.stderr:
        if "to beat" in line:
            break
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 75, errors
    assert "run the same command again to resume" in errors.splitlines()[-1]
    train(tiny_shards, run, "--stage", "both")
    assert weights(run) == weights(uninterrupted)


def test_steps_of_several_threads_are_bit_equal():
    """Runs here are of one thread."""
    threads = torch.get_num_threads()
    ended = []
    try:
        torch.set_num_threads(2)
        for _ in range(2):
            state, config = build_gan_state(pixel=1.0, content=1.0, adversarial=1.0)
            for _ in range(2):
                train_step(state, config, *make_batch(), False)
            ended.append(state_tensors(state))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_stages_one_by_one_equal_both_at_once(tiny_shards, tmp_path, uninterrupted):
    train(tiny_shards, tmp_path / "run", "--stage", "psnr")
    train(tiny_shards, tmp_path / "run", "--stage", "gan")
    assert weights(tmp_path / "run") == weights(uninterrupted)


@pytest.fixture
def finished(uninterrupted, tmp_path) -> Path:
    """A run of both stages that a test may change."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def test_a_finished_run_is_left_as_it_is(tiny_shards, finished, uninterrupted):
    again = train(tiny_shards, finished, "--stage", "psnr")
    assert "already finished" in again.stderr
    assert weights(finished) == weights(uninterrupted)


def test_more_epochs_go_on_where_the_run_ended(tiny_shards, tmp_path):
    run = tmp_path / "run"
    constant = ["--stage", "psnr", "--set", "optim.schedule=constant"]
    train(tiny_shards, run, *constant)
    train(tiny_shards, run, *constant, "--set", "epochs=5")
    train(tiny_shards, tmp_path / "long", *constant, "--set", "epochs=5")
    assert weights(run) == weights(tmp_path / "long")


def test_other_epochs_under_a_cosine_are_refused(tiny_shards, finished):
    more = ["--stage", "psnr", "--set", "epochs=5"]
    assert "epochs = 3, now it is 5" in train(tiny_shards, finished, *more, code=2).stderr


def test_changed_settings_are_refused(tiny_shards, finished):
    refused = train(tiny_shards, finished, "--stage", "psnr", "--set", "optim.lr=1e-5", code=2)
    assert "optim.lr" in refused.stderr


@pytest.mark.parametrize("more", [[], ["--gpus", "2"]])
def test_a_dry_run_refuses_what_the_run_would_refuse(tiny_shards, finished, more):
    asked = ["--stage", "both", "--set", "gan.optim.lr=1e-5", "--dry-run", *more]
    refused = train(tiny_shards, finished, *asked, code=2)
    assert "was trained with optim.lr = " in refused.stderr


def test_a_damaged_newest_checkpoint_costs_one_step_back_and_no_bit(
    tiny_shards, finished, uninterrupted
):
    newest = max((finished / "checkpoints/last").glob("gan-*"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    again = train(tiny_shards, finished, "--stage", "both")
    assert "damaged" in again.stderr
    assert weights(finished) == weights(uninterrupted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--stage", "gan"], "stage gan starts from these weights"),
        (["--set", "generator.fetures=8"], "did you mean"),
        (["--config", "tinny"], "did you mean tiny"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--set", "batch_size=32", "--set", "epoch_patches=64"], "24"),
        (["--device", "cuda"], "--device cuda"),
        (["--gpus", "3"], "cannot be shared equally by 3 processes"),
        (["--gpus", "2", "--device", "auto"], "torch sees 0; ask for"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny_shards, tmp_path, change, words, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused = train(tiny_shards, tmp_path / "run", *change, code=2)
    assert words in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_shards_without_manifest_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused = train(tmp_path / "empty", tmp_path / "run", code=2)
    assert "holds no shards" in refused.stderr


def test_a_tar_in_the_place_of_its_folder_is_told(tiny_shards, tmp_path):
    tar = tiny_shards / "train-000000.tar"
    refused = train(tar, tmp_path / "run", code=2)
    assert f"{tar}: is a file; name the folder that prep-shards wrote" in refused.stderr


def test_dry_run_writes_nothing(tiny_shards, tmp_path):
    result = train(tiny_shards, tmp_path / "run", "--stage", "both", "--dry-run")
    assert "nothing was trained" in result.stdout
    assert not (tmp_path / "run").exists()


def test_the_run_folder_holds_what_is_promised(uninterrupted):
    held = {
        path.relative_to(uninterrupted).as_posix()
        for path in uninterrupted.rglob("*")
        if path.is_file()
    }
    assert {
        "config.toml", "run.json", "metrics.jsonl", "report.html",
        "checkpoints/best-psnr_y/psnr.safetensors", "checkpoints/best-ssim_y/gan.safetensors",
        "figures/figure-5-psnr.svg", "figures/sigma-gan.png",
    } <= held  # fmt: skip
    assert "http" not in "".join(
        part
        for part in (uninterrupted / "report.html").read_text().split('"')
        if part.startswith("http") and "w3.org" not in part
    )
