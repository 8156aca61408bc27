from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from shards.errors import DamagedData, UsageError
from trainer.checkpoint import check_same_run, load_last, save_last
from trainer.config import Config, load_config
from trainer.state import TrainState, build_state, restore, state_tensors
from trainer.steps import gan_step

SETTINGS = [
    "generator.features=8", "generator.blocks=1", "generator.growth=4", "discriminator.features=4",
    "discriminator.dense=8", "content.layer=conv1_2", "ema.halflife_patches=100", "generator.norm=batch",
]  # fmt: skip


def config() -> Config:
    return load_config("tiny", stage="gan", overrides=SETTINGS)


def fresh() -> TrainState:
    return build_state(
        config(), stage="gan", scale=4, device=torch.device("cpu"), content_weights=None
    )


def trained(steps: int = 2) -> TrainState:
    state = fresh()
    for _ in range(steps):
        gan_step(state, config(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), False)
    state.patches_seen = 4
    state.best = {"psnr_y": 30.5}
    return state


def saved(run: Path, *seen: int) -> list[Path]:
    state = trained(1)
    paths = []
    for patches in seen:
        state.patches_seen = patches
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
        gan_step(each, config(), lr, hr, False)
    one, two = state_tensors(state), state_tensors(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_nothing_that_moves_in_a_step_is_left_out(tmp_path):
    state = fresh()
    before = {k: v.clone() for k, v in state_tensors(state).items()}
    gan_step(state, config(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), False)
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
    [("optim.lr=1", False), ("seed=3", False), ("epochs=99", True), ("data.workers=7", True)],
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


def test_the_position_lists_every_setting(tmp_path):
    saved(tmp_path, 8)
    loaded = load_last(tmp_path, "gan", warn=pytest.fail)
    assert loaded is not None
    assert len(loaded[1].config) > 30
    assert msgspec.to_builtins(loaded[1])["stage"] == "gan"
