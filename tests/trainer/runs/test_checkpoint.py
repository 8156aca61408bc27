from __future__ import annotations

import itertools
import json
import os
import signal
import warnings
from pathlib import Path

import msgspec
import pytest
import torch

from shards.errors import DamagedData, UsageError, WriteFailed
from shards.io import atomic
from tests.trainer.runs.support import SETTINGS, config, fresh, trained
from tests.trainer.support import train
from trainer.config.load import load_config
from trainer.config.settings import flatten
from trainer.data.sampler import ORDER_VERSION
from trainer.networks.fold_batch_norm import fold_batch_norm
from trainer.runs.checkpoint import (
    Position,
    best_file,
    check_same_run,
    load_last,
    save_last,
    save_weights,
)
from trainer.training.state import TrainState, build_state, restore, state_tensors
from trainer.training.step import train_step
from trainer.weights.generators import load_generator
from trainer.weights.safetensors_io import load_tensors, save_tensors


def saved(run: Path, *seen: int) -> list[Path]:
    state = trained(1)
    paths = []
    for patches in seen:
        state.progress.patches_seen = patches
        paths.append(save_last(run, state, config(), dataset_sha256="ab"))
    return paths


def test_a_restored_state_takes_the_same_next_step_bit_for_bit(tmp_path):
    state = trained()
    save_last(tmp_path, state, config(), dataset_sha256="ab")
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    tensors, position = loaded
    assert (position.patches_seen, position.best, position.dataset_sha256) == (
        4,
        {"psnr_y": 30.5},
        "ab",
    )
    other = fresh()
    restore(other, tensors)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    for each in (state, other):
        torch.manual_seed(5)
        train_step(each, config(), lr, hr, False)
    one, two = state_tensors(state), state_tensors(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_nothing_that_moves_in_a_step_is_left_out(tmp_path):
    state = fresh()
    before = {k: v.clone() for k, v in state_tensors(state).items()}
    train_step(state, config(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), False)
    after = state_tensors(state)
    after.pop("random.cpu")  # the patches were drawn from it
    moved = {
        k.split(".")[0]
        for k, v in after.items()
        if k not in before or not torch.equal(v, before[k])
    }
    assert moved == {"generator", "discriminator", "optimizer", "discriminator_optimizer"}
    assert any("_u" in k for k in after if k.startswith("discriminator."))


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-9], lambda c: c[:2000] + bytes([c[2000] ^ 1]) + c[2001:], lambda c: b""],
)
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, damage):
    paths = saved(tmp_path, 8, 16)
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    warnings: list[str] = []
    loaded = load_last(tmp_path, "gan", warn=warnings.append)
    assert loaded is not None
    assert loaded[1].patches_seen == 8
    assert len(warnings) == 1
    assert str(paths[1]) in warnings[0]


def test_a_newest_checkpoint_that_the_disk_does_not_give_falls_back_too(tmp_path):
    paths = saved(tmp_path, 8, 16)
    paths[1].unlink()
    paths[1].mkdir()  # reading it is an error of the operating system
    warnings: list[str] = []
    loaded = load_last(tmp_path, "gan", warn=warnings.append)
    assert loaded is not None
    assert loaded[1].patches_seen == 8
    assert str(paths[1]) in warnings[0]


def test_if_none_can_be_read_the_run_does_not_start_anew(tmp_path):
    for path in saved(tmp_path, 8, 16):
        path.write_bytes(b"x")
    with pytest.raises(DamagedData, match="none of its 2 checkpoints"):
        load_last(tmp_path, "gan", warn=lambda _: None)


def test_the_newest_two_are_kept(tmp_path):
    paths = saved(tmp_path, 8, 16, 24, 10_000)
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert load_last(tmp_path, "gan", warn=pytest.fail) is None


@pytest.mark.parametrize(
    ("override", "free"),
    [
        ("optim.lr=1", False),
        ("seed=3", False),
        ("epochs=99", True),
        ("data.workers=7", True),
        ("validation.patches=3", True),
    ],
)
def test_only_free_settings_may_change_in_a_run(tmp_path, override, free):
    saved(tmp_path, 8)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    changed = load_config("tiny", stage="gan", overrides=[*SETTINGS, override])
    if free:
        check_same_run(loaded[1], changed, run=tmp_path, dataset_sha256="ab")
    else:
        with pytest.raises(UsageError, match=override.partition("=")[0]):
            check_same_run(loaded[1], changed, run=tmp_path, dataset_sha256="ab")


def test_other_data_is_refused(tmp_path):
    saved(tmp_path, 8)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    with pytest.raises(UsageError, match="was trained on data set ab"):
        check_same_run(loaded[1], config(), run=tmp_path, dataset_sha256="cd")


def test_a_checkpoint_of_another_order_of_batches_is_refused(tmp_path):
    old = msgspec.json.decode(
        b'{"stage":"gan","patches_seen":8,"best":{},"dataset_sha256":"ab","config":{},"version":"0.0.9"}',
        type=Position,
    )
    with pytest.raises(UsageError, match=r"usrgan 0\.0\.9, whose batches came in another order"):
        check_same_run(old, config(), run=tmp_path, dataset_sha256="ab")


def without(name: str, *overrides: str) -> Position:
    """The position of a run that was made before there was a setting."""
    settings = flatten(load_config("tiny", stage="gan", overrides=[*SETTINGS, *overrides]))
    del settings[name]
    return Position(
        stage="gan",
        patches_seen=8,
        dataset_sha256="ab",
        config=settings,
        version="0.0.9",
        order=ORDER_VERSION,
    )


def test_a_run_goes_on_by_the_default_of_a_setting_that_is_newer_than_it(tmp_path):
    old = without("adversarial.kind")
    check_same_run(old, config(), run=tmp_path, dataset_sha256="ab")


def test_a_newer_setting_that_is_not_its_default_is_refused_with_the_version_and_a_way_out(
    tmp_path,
):
    changed = load_config("tiny", stage="gan", overrides=[*SETTINGS, "adversarial.kind=hinge"])
    with pytest.raises(UsageError) as refused:
        check_same_run(without("adversarial.kind"), changed, run=tmp_path, dataset_sha256="ab")
    told = str(refused.value)
    assert (
        "by usrgan 0.0.9, which had no adversarial.kind and behaved as with non-saturating" in told
    )
    assert "now it is hinge; use another --out" in told
    assert f"--init {tmp_path}/checkpoints/best-psnr_y/gan.safetensors" in told


def test_the_position_lists_every_setting(tmp_path):
    saved(tmp_path, 8)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    assert len(loaded[1].config) > 30
    assert msgspec.to_builtins(loaded[1])["stage"] == "gan"


def test_what_is_loaded_has_the_bits_types_and_places_of_what_was_saved(tmp_path):
    state = trained()
    wanted = {name: value.clone() for name, value in state_tensors(state).items()}
    save_last(tmp_path, state, config(), dataset_sha256="ab")
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    other = fresh()
    restore(other, loaded[0])
    found = state_tensors(other)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name].cpu(), value.cpu()), name
        assert found[name].stride() == value.stride(), name
    assert {value.dtype for value in wanted.values()} >= {torch.float32, torch.int64, torch.uint8}


def test_random_numbers_go_on_where_the_checkpoint_stands(tmp_path):
    state = trained(1)
    torch.manual_seed(123)
    wanted = torch.randn(8)[5:]
    torch.manual_seed(123)
    torch.randn(5)
    save_last(tmp_path, state, config(), dataset_sha256="ab")
    assert torch.equal(torch.randn(3), wanted)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    restore(fresh(), loaded[0])
    assert torch.equal(torch.randn(3), wanted)


def test_training_on_the_cpu_leaves_a_gpu_that_is_there_alone(monkeypatch):
    state = trained(1)  # torch's Adam itself asks a GPU that it is told of
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state"):  # each would make a context
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("asked the GPU"))
    saved = state_tensors(state)
    restore(fresh(), saved | {"random.cuda": torch.zeros(16, dtype=torch.uint8)})
    assert "random.cuda" not in saved


@pytest.mark.parametrize(("keep", "held"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 4)])
def test_keep_says_how_many_are_held_and_never_none(tmp_path, keep, held):
    settings = load_config("tiny", stage="gan", overrides=[*SETTINGS, f"checkpoint.keep={keep}"])
    state = trained(1)
    paths = []
    for patches in (8, 999, 1000, 10**9):
        state.progress.patches_seen = patches
        paths.append(save_last(tmp_path, state, settings, dataset_sha256="ab"))
    assert sorted(paths[0].parent.iterdir()) == paths[-held:]


def test_saving_drops_nothing_of_the_other_stage(tmp_path):
    others = saved(tmp_path, 8, 16)
    state = build_state(
        config(), stage="psnr", scale=4, device=torch.device("cpu"), content_weights=None
    )
    for patches in (8, 16, 24):
        state.progress.patches_seen = patches
        save_last(tmp_path, state, config(), dataset_sha256="ab")
    assert all(path.exists() for path in others)
    for stage, newest in (("gan", 16), ("psnr", 24)):
        loaded = load_last(tmp_path, stage, warn=pytest.fail)
        assert loaded is not None
        assert (loaded[1].stage, loaded[1].patches_seen) == (stage, newest)


def test_damaged_newer_ones_do_not_push_out_the_one_just_saved(tmp_path):
    for path in saved(tmp_path, 8, 16, 24)[1:]:
        path.write_bytes(b"x")
    fallen_back = saved(tmp_path, 12)[0]
    assert fallen_back.exists()
    loaded = load_last(tmp_path, "gan", warn=lambda _: None)
    assert loaded is not None
    assert loaded[1].patches_seen == 12


@pytest.mark.parametrize("position", [None, "", "{}", '{"stage": "gan", "patches_seen": "many"}'])
def test_a_file_without_a_position_is_passed_over_like_a_damaged_one(tmp_path, position):
    newest = saved(tmp_path, 8, 16)[1]
    metadata = {} if position is None else {"position": position}
    save_tensors(newest, {"a": torch.zeros(1)}, metadata)
    told: list[str] = []
    loaded = load_last(tmp_path, "gan", warn=told.append)
    assert loaded is not None
    assert loaded[1].patches_seen == 8
    assert len(told) == 1


def test_no_flipped_bit_of_the_position_is_believed(tmp_path):
    path = saved(tmp_path, 8)[0]
    whole = path.read_bytes()
    start = whole.index(b"patches_seen")
    for bit in range(8 * start, 8 * (start + 40), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedData, match="none of its 1 checkpoints"):
            load_last(tmp_path, "gan", warn=lambda _: None)


def test_the_best_weights_are_the_averages_and_ready_to_upscale(tmp_path):
    state = trained()
    path = best_file(tmp_path, "psnr_y", "gan")
    save_weights(path, state, {"stage": "gan", "scale": "4"})
    assert path == best_file(tmp_path, "psnr_y", "gan")
    assert path.parts[-3:] == ("checkpoints", "best-psnr_y", "gan.safetensors")
    loaded = load_generator(path, device=torch.device("cpu"))
    assert (loaded.scale, loaded.metadata["stage"]) == (4, "gan")
    assert state.ema is not None
    found = loaded.module.state_dict()
    wanted = fold_batch_norm(state.ema.state_dict())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert not torch.equal(found["conv_last.weight"], state.generator.conv_last.weight)


# crashes

OPERATIONS = 12
"""More file operations than a save has; the tests see where it ends."""


def save_with_fault(run: Path, state: TrainState, fault: str) -> None:
    atomic._operations = itertools.count(1)
    os.environ["USRGAN_FAULT"] = fault
    save_last(run, state, config(), dataset_sha256="ab")


def killed(run: Path, state: TrainState, number: int) -> bool:
    """Save in a process that is killed at its file operation `number`; False if it has fewer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child computes nothing
        child = os.fork()
    if child == 0:
        try:
            save_with_fault(run, state, f"kill@{number}")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


@pytest.mark.parametrize("before", [(), (8,), (8, 16)])
def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path, before):
    state = trained(1)
    outcomes = []
    for number in range(1, OPERATIONS + 1):
        run = tmp_path / str(number)
        run.mkdir()
        for patches in before:
            state.progress.patches_seen = patches
            save_last(run, state, config(), dataset_sha256="ab")
        state.progress.patches_seen = 24
        was_killed = killed(run, state, number)
        loaded = load_last(run, "gan", warn=pytest.fail)
        outcomes.append(0 if loaded is None else loaded[1].patches_seen)
        if not was_killed:
            break
        # the next save works as if nothing had been
        again = save_last(run, state, config(), dataset_sha256="ab")
        assert sum(path.suffix == ".safetensors" for path in again.parent.iterdir()) <= 2
        loaded = load_last(run, "gan", warn=pytest.fail)
        assert loaded is not None
        assert loaded[1].patches_seen == 24
    old, new = before[-1] if before else 0, 24
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {old, new}
    assert 5 < len(outcomes) < OPERATIONS


@pytest.mark.parametrize("fault", ["enospc", "eio"])
def test_a_refused_file_operation_is_one_line_and_loses_nothing(tmp_path, fault, monkeypatch):
    monkeypatch.setenv("USRGAN_FAULT", "")  # put back afterwards
    monkeypatch.delenv("USRGAN_FAULT")
    state = trained(1)
    refusals = 0
    for number in range(1, OPERATIONS + 1):
        run = tmp_path / str(number)
        run.mkdir()
        for patches in (8, 16):
            state.progress.patches_seen = patches
            save_last(run, state, config(), dataset_sha256="ab")
        state.progress.patches_seen = 24
        try:
            save_with_fault(run, state, f"{fault}@{number}")
        except WriteFailed as error:
            refusals += 1
            message = str(error)
        else:
            break
        finally:
            monkeypatch.delenv("USRGAN_FAULT")
        assert message.startswith(str(run))
        assert "\n" not in message
        assert ("disk is full" in message) == (fault == "enospc")
        assert not list(run.rglob(".*.tmp"))
        loaded = load_last(run, "gan", warn=pytest.fail)
        assert loaded is not None
        assert loaded[1].patches_seen in (16, 24)
    assert 4 < refusals < OPERATIONS


def test_temporaries_of_a_killed_run_are_swept_when_it_goes_on(tmp_path, tiny_shards):
    run = tmp_path / "run"
    left = [
        run / ".config.toml.123.tmp",
        run / "samples" / ".psnr-000000000016.png.123.tmp",
        run / "checkpoints" / "last" / ".psnr-000000000016.safetensors.123.tmp",
        run / "checkpoints" / "best-psnr_y" / ".psnr.safetensors.123.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    train(tiny_shards, run, "--stage", "psnr", "--set", "epochs=1")
    assert not [path for path in left if path.exists()]
    assert best_file(run, "psnr_y", "psnr").is_file()


def test_a_job_on_the_cpu_leaves_the_gpu_alone(monkeypatch):
    """Its random state would make a context there, or fail where the GPU is another's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: pytest.fail("asked the GPU"))
    tensors = state_tensors(fresh())
    assert "random.cuda" not in tensors
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _: pytest.fail("told the GPU"))
    restore(fresh(), {**tensors, "random.cuda": tensors["random.cpu"]})


def test_positions_keep_the_keys_of_older_checkpoints(tmp_path):
    state = trained(1)
    state.progress.skipped_patches, state.progress.consecutive_skips = 12, 1
    path = save_last(tmp_path, state, config(), dataset_sha256="ab")
    stored = json.loads(load_tensors(path)[1]["position"])
    assert (stored["passed_over"], stored["bad_in_a_row"]) == (12, 1)
    assert not {"skipped_patches", "consecutive_skips"} & stored.keys()
    read = msgspec.json.decode(json.dumps(stored), type=Position)
    assert (read.skipped_patches, read.consecutive_skips) == (12, 1)
    del stored["passed_over"], stored["bad_in_a_row"]  # of the first checkpoints
    read = msgspec.json.decode(json.dumps(stored), type=Position)
    assert (read.skipped_patches, read.consecutive_skips) == (0, 0)
