"""Steps and runs with each adversarial loss, R1 and fp16."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.trainer.support import logged, train, weights
from tests.trainer.training.support import build_gan_state, collect_gradients, make_batch
from trainer.config.schema import AdversarialKind
from trainer.losses.adversarial import (
    r1_penalty,
)
from trainer.training.state import build_state, restore, state_tensors
from trainer.training.step import train_step

KINDS = get_args(AdversarialKind)


def test_the_log_of_a_relativistic_step_does_not_move_with_all_logits():
    told = []
    for shift in (0.0, 30.0):
        torch.manual_seed(0)
        state, config = build_gan_state("adversarial.kind=relativistic")
        state.adversary.discriminator.linear2.bias.data += shift
        losses = train_step(state, config, *make_batch(), False).losses
        told.append((losses["d_real"].item(), losses["d_fake"].item()))
    assert told[0] == pytest.approx(told[1], abs=1e-4)
    assert sum(told[0]) == pytest.approx(1, abs=0.01)  # near 0.5 each


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
def test_the_step_takes_r1_every_so_many_steps_and_it_moves_the_discriminator(architecture):
    settings = (f"discriminator.architecture={architecture}", "adversarial.r1_every=2")
    found = {}
    for weight in (0.0, 10.0):
        state, config = build_gan_state(*settings, f"adversarial.r1={weight}", adversarial=1.0)
        train_step(state, config, *make_batch(), False)
        found[weight] = collect_gradients(state.adversary.discriminator)
    assert any(not torch.equal(found[0.0][name], value) for name, value in found[10.0].items())
    state.progress.patches_seen = config.batch_size
    assert train_step(state, config, *make_batch(), False).losses["r1"] == 0
    state.progress.patches_seen = 2 * config.batch_size
    losses = train_step(state, config, *make_batch(), False).losses
    assert losses["r1"] > 0
    patches = make_batch()[1].requires_grad_()
    state.adversary.discriminator.eval()
    penalty = r1_penalty(state.adversary.discriminator(patches), patches)
    assert losses["r1"].item() == pytest.approx(2 * penalty.item(), rel=0.2)  # one update later


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_step_lowers_the_loss_of_its_network(kind, architecture):
    settings = (f"adversarial.kind={kind}", f"discriminator.architecture={architecture}")
    lr, hr = make_batch()
    state, config = build_gan_state(*settings, adversarial=1.0)
    optimizers = {"discriminator": state.adversary.optimizer, "generator": state.optimizer}
    for moving in optimizers:
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = 1e-3 if name == moving else 0.0
        losses = [train_step(state, config, lr, hr.round(), False).losses[moving] for _ in range(8)]
        assert losses[-1] < losses[0], moving


def test_fp16_scales_its_gradients_and_leaves_out_the_step_that_overflows():
    state, config = build_gan_state("precision=fp16", pixel=1.0, adversarial=1.0)
    plain, _ = build_gan_state(pixel=1.0, adversarial=1.0)
    assert state.scaler is not None
    assert plain.scaler is None
    state.scaler._init_scale = 1024.0  # the usual 65536 would leave out the first steps
    train_step(state, config, *make_batch(), False)
    train_step(plain, config, *make_batch(), False)
    ours, theirs = collect_gradients(state.generator), collect_gradients(plain.generator)
    flat = [torch.cat([each[name].flatten() for name in each]) for each in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99
    assert flat[0].norm() == pytest.approx(flat[1].norm().item(), rel=0.02)

    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    state.scaler.update(2.0**80)
    train_step(state, config, *make_batch(), False)
    assert all(
        torch.equal(value, before[name]) for name, value in state.generator.state_dict().items()
    )
    assert state.scaler.get_scale() == 2.0**79


def test_the_scale_of_fp16_survives_a_restart():
    state, config = build_gan_state("precision=fp16", pixel=1.0)
    train_step(state, config, *make_batch(), False)
    state.scaler.update(512.0)
    saved = state_tensors(state)
    other = build_state(
        config, stage="gan", scale=4, device=torch.device("cpu"), content_weights=None
    )
    restore(other, saved)
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert other.scaler.get_scale() == 512


@pytest.mark.slow
def test_a_resumed_run_with_r1_and_a_u_net_ends_with_the_same_bits(tiny_shards, tmp_path):
    settings = (
        "psnr.epochs=1", "adversarial.kind=relativistic", "adversarial.r1=1", "adversarial.r1_every=3",
        "discriminator.architecture=unet", "telemetry.every_patches=4",
    )  # fmt: skip
    more = [part for setting in settings for part in ("--set", setting)]
    train(tiny_shards, tmp_path / "parts", *more, "--set", "gan.epochs=1")
    train(tiny_shards, tmp_path / "parts", *more, "--set", "gan.epochs=2")
    train(tiny_shards, tmp_path / "whole", *more, "--set", "gan.epochs=2")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert any(row["loss_r1"] > 0 for row in logged(tmp_path / "whole") if "loss_r1" in row)
