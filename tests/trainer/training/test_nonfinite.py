"""Losses that are not finite, and disks that are full: nothing bad is kept, nothing good is lost."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.errors import WriteFailed
from shards.read.dataset import open_dataset
from tests.trainer.support import logged, train, weights
from trainer.config.schema import DataConfig
from trainer.data.batches import to_float_images
from trainer.data.loader import PatchLoader
from trainer.losses import content
from trainer.runs import checkpoint, writer
from trainer.runs.checkpoint import load_good, load_last
from trainer.training import objectives
from trainer.training.state import state_tensors
from trainer.training.step import train_step
from trainer.weights.safetensors_io import load_tensors

SHORT = ["--stage", "gan", "--set", "optim.schedule=constant", "--set", "epochs=2"]
STEPS = 8
"""Steps of a run with SHORT: two epochs of four; a checkpoint follows every second step."""


@pytest.fixture(scope="module")
def psnr(tiny_shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("psnr") / "run"
    train(tiny_shards, run, "--stage", "psnr", "--set", "epochs=1")
    return run / "checkpoints/final/psnr.safetensors"


@pytest.fixture(scope="module")
def order(tiny_shards) -> list[float]:
    """Return a value per batch of a run that differs between batches, in their order."""
    split = open_dataset(tiny_shards).split("train")
    stream = PatchLoader(split, seed=0, batch_size=4, first_step=0, config=DataConfig())
    found = [
        to_float_images(batch.hr, torch.device("cpu"), batch.dihedrals).sum().item()
        for batch in itertools.islice(stream, 2 * STEPS)
    ]
    stream.close()
    return found


@pytest.fixture
def gan(tiny_shards, psnr, tmp_path) -> Callable[..., object]:
    def run(*more: str, code: int = 0, out: str = "run"):
        return train(tiny_shards, tmp_path / out, *SHORT, "--init", str(psnr), *more, code=code)

    return run


@pytest.fixture
def poison(monkeypatch) -> Callable[..., list[torch.Tensor]]:
    """Let some calls of the content loss give NaN; returns the HR batches that were trained on."""

    def at(*calls: int, when: Callable[[torch.Tensor], bool] | None = None) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        original, loss = objectives.gan_gradients, content.content_loss

        def gradients(state, config, lr, hr, *rest, **more):
            seen.append(hr.clone())
            return original(state, config, lr, hr, *rest, **more)

        def poisoned(*features, **settings):
            bad = len(seen) in calls or (when is not None and when(seen[-1]))
            return loss(*features, **settings) * (float("nan") if bad else 1.0)

        monkeypatch.setitem(objectives.STAGE_OBJECTIVES, "gan", gradients)
        monkeypatch.setattr(objectives, "content_loss", poisoned)
        return seen

    return at


def position(run: Path) -> dict:
    newest = max((run / "checkpoints/last").glob("gan-*"))
    return json.loads(load_tensors(newest)[1]["position"])


def test_a_bad_step_is_left_out_and_its_term_named(gan, poison, tmp_path):
    poison(3)
    told = gan().stderr
    assert "content is not finite at 12 patches of stage gan; the step is left out (1 of 3" in told
    rows = [row for row in logged(tmp_path / "run") if row["stage"] == "gan"]
    assert [row.get("steps_left_out", 0) for row in rows] == [1, 0]
    assert all(value == value for row in rows for value in row.values())
    for stored in weights(tmp_path / "run").values():
        assert stored


def test_a_left_out_step_moves_nothing_but_the_order(gan, poison, tmp_path, monkeypatch):
    """The states around a bad step are equal bit for bit."""
    states = []
    original = checkpoint.save_last

    def save(run, state, config, *, dataset_sha256):
        path = original(run, state, config, dataset_sha256=dataset_sha256)
        states.append(load_tensors(path)[0])
        return path

    monkeypatch.setattr(writer, "save_last", save)
    poison(7, 8)
    gan()
    before, after = states[-2], states[-1]  # after steps 6 and 8
    for name, value in before.items():
        if not name.startswith(("random", "losses")):
            assert torch.equal(after[name], value), name


def test_after_three_in_a_row_the_run_returns_and_passes_over_them(gan, poison, tmp_path):
    seen = poison(5, 6, 7)
    told = gan().stderr
    # bad from step 5 to 7: back to the checkpoint after step 4, on with the batch after the bad ones
    assert "(3 of 3 before a rollback)" in told
    assert "rolled back to 16 patches of stage gan (1 of 2)" in told
    assert len(seen) == 7 + 4
    assert not any(torch.equal(seen[7], batch) for batch in seen[4:7])
    assert position(tmp_path / "run")["passed_over"] == 12
    assert position(tmp_path / "run")["rollbacks"] == 1
    assert [row["patches_seen"] for row in logged(tmp_path / "run")] == [16, 32]


def test_without_a_checkpoint_the_run_returns_to_its_start(gan, poison, tmp_path):
    seen = poison(1, 2, 3, 5)
    told = gan("--set", "checkpoint.every_patches=1000").stderr
    assert "rolled back to 0 patches" in told
    assert len(seen) == 3 + STEPS
    assert position(tmp_path / "run")["passed_over"] == 12


def test_a_resumed_run_without_a_good_checkpoint_returns_to_the_weights_of_stage_psnr(
    tiny_shards, tmp_path, poison, monkeypatch
):
    run = tmp_path / "run"
    train(tiny_shards, run, *SHORT, "--stage", "psnr")
    started: list[torch.Tensor] = []

    def stopped_at(*calls: int) -> None:
        inner = objectives.STAGE_OBJECTIVES["gan"]

        def gradients(state, *rest, **more):
            started.append(state.generator.conv_first.weight.detach().clone())
            if len(started) in calls:
                signal.raise_signal(signal.SIGTERM)
            return inner(state, *rest, **more)

        monkeypatch.setitem(objectives.STAGE_OBJECTIVES, "gan", gradients)

    poison(1, 2)
    stopped_at(1)  # within the row of bad steps, and saved there
    train(tiny_shards, run, *SHORT, code=75)
    poison(1)
    stopped_at()
    told = train(tiny_shards, run, *SHORT).stderr
    assert "rolled back to 0 patches of stage gan" in told
    best, _ = load_tensors(run / "checkpoints/best-psnr_y/psnr.safetensors")
    assert torch.equal(started[-STEPS], best["conv_first.weight"])


def test_a_run_that_does_not_recover_ends_with_the_term_and_whole_checkpoints(
    gan, poison, tmp_path
):
    seen = poison(*range(5, 100))
    told = gan(code=1).stderr
    assert "content is not finite in 3 steps in a row" in told.splitlines()[-1]
    assert "after 2 rollbacks" in told.splitlines()[-1]
    # the second return suspects the checkpoint of the first
    assert "rolled back to 16 patches of stage gan (1 of 2)" in told
    assert "rolled back to 8 patches of stage gan (2 of 2)" in told
    assert len(seen) == 7 + 3 + 3
    loaded = load_last(tmp_path / "run", "gan", warn=pytest.fail)
    assert loaded is not None
    assert all(value.isfinite().all() for value in loaded[0].values())


def test_a_bad_batch_is_met_once_although_the_order_is_fixed(gan, poison, order):
    """The data is bad, so replaying it would end the run."""
    bad = set(order[4:7])
    seen = poison(when=lambda batch: batch.sum().item() in bad)
    told = gan().stderr
    assert told.count("rolled back") == 1
    assert sum(batch.sum().item() in bad for batch in seen) == 3


def test_a_run_killed_between_bad_steps_ends_with_the_same_bits(
    gan, poison, order, tmp_path, monkeypatch
):
    def bad(batch: torch.Tensor) -> bool:
        return batch.sum().item() in order[4:7]

    poison(when=bad)
    gan(out="whole")
    for number in (6,):
        calls = poison(when=bad)
        inner = objectives.STAGE_OBJECTIVES["gan"]

        def dying(*arguments, calls=calls, number=number, inner=inner, **more):
            if len(calls) == number:
                raise KeyboardInterrupt
            return inner(*arguments, **more)

        monkeypatch.setitem(objectives.STAGE_OBJECTIVES, "gan", dying)
        gan(out=f"killed {number}", code=75)
        poison(when=bad)
        gan(out=f"killed {number}")
        assert weights(tmp_path / f"killed {number}") == weights(tmp_path / "whole")
        assert position(tmp_path / f"killed {number}") == position(tmp_path / "whole")


def test_rollbacks_return_to_no_checkpoint_from_within_a_bad_row(
    tiny_shards, tmp_path, monkeypatch
):
    from tests.trainer.runs.support import config, trained

    state = trained(1)
    for seen, row in ((8, 0), (16, 0), (24, 1)):
        state.progress.patches_seen, state.progress.consecutive_skips = seen, row
        settings = config()
        checkpoint.save_last(tmp_path, state, settings, dataset_sha256="ab")
    # two are kept
    found = {
        suspect: load_good(tmp_path, "gan", suspect=suspect, warn=pytest.fail)
        for suspect in (None, 16, 12)
    }
    assert {suspect: each[1].patches_seen for suspect, each in found.items() if each} == {
        None: 16, 16: 16, 12: 16,
    }  # fmt: skip
    checkpoint.remove_checkpoints_after(tmp_path, "gan", 16)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    assert loaded[1].patches_seen == 16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_one_bad_gradient_among_all_is_seen(monkeypatch, bad, network):
    from tests.trainer.runs.support import config, fresh

    state, original = fresh(), objectives.gan_gradients
    before = {name: value.clone() for name, value in state_tensors(state).items()}

    def gradients(state, *arguments, **more):
        found = original(state, *arguments, **more)
        held = state.gradients if network == "generator" else state.adversary.gradients
        held.flat[held.flat.nonzero()[7]] = bad
        return found

    monkeypatch.setitem(objectives.STAGE_OBJECTIVES, "gan", gradients)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    outcome = train_step(state, config(), lr, hr, False)
    flags = zip(outcome.flag_names, outcome.nonfinite_flags, strict=True)
    assert [name for name, flag in flags if flag] == [f"gradient of the {network}"]
    assert outcome.applied == 0
    for name, value in state_tensors(state).items():
        if name in before and not name.startswith("random"):
            assert torch.equal(value, before[name]), name


# disks


@pytest.fixture
def psnr_run(tiny_shards, tmp_path) -> Callable[..., object]:
    def run(*more: str, code: int = 0, out: str = "run"):
        options = ["--stage", "psnr", *SHORT[2:]]
        return train(tiny_shards, tmp_path / out, *options, *more, code=code)

    return run


@pytest.fixture
def full(monkeypatch) -> Callable[..., list[int]]:
    """Let some saves of `last` find the disk full."""

    def at(*numbers: int) -> list[int]:
        saves: list[int] = []
        original = checkpoint.save_last

        def save(run, state, config, *, dataset_sha256):
            saves.append(state.progress.patches_seen)
            if len(saves) in numbers:
                raise WriteFailed(f"{run}: the disk is full (0 MiB free); free some space")
            return original(run, state, config, dataset_sha256=dataset_sha256)

        monkeypatch.setattr(writer, "save_last", save)
        return saves

    return at


def test_a_disk_that_is_full_for_a_while_stops_nothing(psnr_run, full, tmp_path):
    psnr_run(out="whole")
    saves = full(2, 3)
    told = psnr_run().stderr
    assert saves == [8, 16, 24, 32]
    assert told.count("the disk is full") == 2
    assert "checkpoint at 16 patches not saved" in told
    assert "(failure 2 of 3 in a row)" in told
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_the_third_failure_in_a_row_ends_the_run_with_the_old_checkpoint(psnr_run, full, tmp_path):
    more = ["--set", "epochs=3"]
    saves = full(2, 3, 4)
    assert "the disk is full" in psnr_run(*more, code=1).stderr.splitlines()[-1]
    assert saves == [8, 16, 24, 32]
    loaded = load_last(tmp_path / "run", "psnr", warn=pytest.fail)
    assert loaded is not None
    assert loaded[1].patches_seen == 8
    full()
    psnr_run(*more)
    psnr_run(*more, out="whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_last_save_that_fails_is_no_success(psnr_run, full):
    full(4)
    assert "the disk is full" in psnr_run(code=1).stderr.splitlines()[-1]


def test_rows_and_weights_that_could_not_be_written_come_later(psnr_run, tmp_path, monkeypatch):
    psnr_run(out="whole")
    failing = {"append_metrics": 1, "save_weights": 2, "write_sample_file": 1}
    for name, times in failing.items():
        original = getattr(writer, name)
        left = iter(range(times))

        def refuse(*arguments, original=original, left=left, **more):
            if next(left, None) is not None:
                raise WriteFailed(f"{arguments[0]}: the disk is full (0 MiB free); free some space")
            return original(*arguments, **more)

        monkeypatch.setattr(writer, name, refuse)
    told = psnr_run().stderr
    assert "the row is written with the next one" in told
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert len(list((tmp_path / "run/samples").iterdir())) == 1
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
