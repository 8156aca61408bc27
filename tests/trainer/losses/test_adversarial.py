"""Each kind of adversarial loss against float64 formulas, its gradient's way, and training with it."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from tests.trainer.losses.support import gan, gradients, images
from tests.trainer.support import logged, train, weights
from trainer.config.schema import AdversarialKind
from trainer.losses.adversarial import (
    discriminator_confidence,
    discriminator_loss,
    generator_adversarial_loss,
    r1_penalty,
)
from trainer.training.state import build_state, restore, state_tensors
from trainer.training.step import train_step

KINDS = get_args(AdversarialKind)
LOGITS = [-9.0, -1.5, 0.0, 0.25, 7.0]
REAL = np.array([3.0, -0.5, 1.25, 0.1, -4.0, 8.0])
FAKE = np.array([-2.0, 0.75, -0.3, 4.0, -7.5, 0.9])


def d(logit):
    return 1 / (1 + np.exp(-logit))


def references(real, fake):
    """(generator's loss, discriminator's) of each kind, as its paper writes it."""
    real_over_fake, fake_over_real = d(real - fake.mean()), d(fake - real.mean())
    eq4 = -np.log(d(real)).mean() - np.log(1 - d(fake)).mean()
    return {
        "non-saturating": (-np.log(d(fake)).mean(), eq4),
        "saturating": (np.log(1 - d(fake)).mean(), eq4),
        "relativistic": (
            (-np.log(1 - real_over_fake).mean() - np.log(fake_over_real).mean()) / 2,
            (-np.log(real_over_fake).mean() - np.log(1 - fake_over_real).mean()) / 2,
        ),
        "hinge": (
            -fake.mean(),
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
        ),
        "least-squares": (
            0.5 * ((fake - 1) ** 2).mean(),
            0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
        ),
    }


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_its_paper_writes(kind, shape):
    real, fake = (torch.tensor(each).float().reshape(shape) for each in (REAL, FAKE))
    generators, discriminators = references(REAL, FAKE)[kind]
    found = generator_adversarial_loss(kind, fake, real).item()
    assert found == pytest.approx(generators, rel=1e-5)
    assert discriminator_loss(kind, real, fake).item() == pytest.approx(discriminators, rel=1e-5)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_papers_losses_are_logarithms_of_the_sigmoid(logit):
    real = 1 / (1 + math.exp(-logit))
    fake = 1 / (1 + math.exp(logit))  # 1 - real without cancellation
    at, zero = torch.tensor([logit]), torch.zeros(1)
    found = generator_adversarial_loss("non-saturating", at).item()
    assert found == pytest.approx(-math.log(real), rel=1e-5)
    half = math.log(0.5)
    for pair, wanted in (((at, zero), -math.log(real)), ((zero, at), -math.log(fake))):
        found = discriminator_loss("non-saturating", *pair).item()
        assert found == pytest.approx(wanted - half, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_stay_finite_and_in_float32_where_a_sigmoid_would_not(kind):
    far = torch.tensor([-200.0, 200.0], dtype=torch.bfloat16)
    for loss in (generator_adversarial_loss(kind, far, far), discriminator_loss(kind, far, far)):
        assert loss.isfinite()
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(("kind", "gradient"), [("non-saturating", -1.0), ("saturating", -2e-9)])
def test_only_the_saturating_form_stops_learning_while_the_discriminator_wins(kind, gradient):
    logit = torch.tensor([-20.0], requires_grad=True)
    generator_adversarial_loss(kind, logit).backward()
    assert logit.grad.item() == pytest.approx(gradient, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_pushes_fake_up_for_the_generator_and_down_for_the_discriminator(kind):
    real, fake = torch.zeros(4), torch.zeros(4, requires_grad=True)
    generator_adversarial_loss(kind, fake, real).backward()
    assert (fake.grad < 0).all()
    real, fake = (torch.zeros(4, requires_grad=True) for _ in range(2))
    discriminator_loss(kind, real, fake).backward()
    assert (real.grad < 0).all()
    # least squares wants 0 for fake, which is where these stand
    assert (fake.grad == 0).all() if kind == "least-squares" else (fake.grad > 0).all()


# R1


def test_a_relativistic_discriminator_believes_in_differences_and_any_other_in_its_logits():
    real, fake = torch.tensor([5.0, 7.0]), torch.tensor([3.0, 5.0])
    for kind in KINDS:
        shift = (4.0, 6.0) if kind == "relativistic" else (0.0, 0.0)
        found = [each.item() for each in discriminator_confidence(kind, real, fake)]
        wanted = [
            d((each - by).numpy()).mean() for each, by in zip((real, fake), shift, strict=True)
        ]
        assert found == pytest.approx(wanted)


def test_the_log_of_a_relativistic_step_does_not_move_with_all_logits():
    told = []
    for shift in (0.0, 30.0):
        torch.manual_seed(0)
        state, config = gan("adversarial.kind=relativistic")
        state.adversary.discriminator.linear2.bias.data += shift
        losses = train_step(state, config, *images(), False).losses
        told.append((losses["d_real"].item(), losses["d_fake"].item()))
    assert told[0] == pytest.approx(told[1], abs=1e-4)
    assert sum(told[0]) == pytest.approx(1, abs=0.01)  # near 0.5 each


def test_r1_is_half_the_squared_gradient_of_each_patch():
    random = torch.Generator().manual_seed(3)
    first = torch.randn(3 * 4 * 4, 5, generator=random).double()
    second = torch.randn(5, generator=random).double()
    patches = torch.rand(2, 3, 4, 4, generator=random).double()
    logits = (patches.requires_grad_().flatten(1) @ first).tanh() @ second
    found = r1_penalty(logits, patches).item()
    wanted = 0.0
    for patch in patches.detach().numpy().reshape(2, -1):
        slope = 1 - np.tanh(patch @ first.numpy()) ** 2
        wanted += 0.5 * ((first.numpy() @ (slope * second.numpy())) ** 2).sum() / 2
    assert found == pytest.approx(wanted, rel=1e-6)


def test_r1_of_a_map_of_logits_is_that_of_their_mean():
    patches = torch.rand(2, 3, 4, 4).requires_grad_()
    logits = patches.square().sum(1, keepdim=True)
    found = r1_penalty(logits, patches).item()
    wanted = 0.5 * (2 * patches.detach().double() / 16).square().sum().item() / 2
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
def test_the_step_takes_r1_every_so_many_steps_and_it_moves_the_discriminator(architecture):
    settings = (f"discriminator.architecture={architecture}", "adversarial.r1_every=2")
    found = {}
    for weight in (0.0, 10.0):
        state, config = gan(*settings, f"adversarial.r1={weight}", adversarial=1.0)
        train_step(state, config, *images(), False)
        found[weight] = gradients(state.adversary.discriminator)
    assert any(not torch.equal(found[0.0][name], value) for name, value in found[10.0].items())
    state.progress.patches_seen = config.batch_size
    assert train_step(state, config, *images(), False).losses["r1"] == 0
    state.progress.patches_seen = 2 * config.batch_size
    losses = train_step(state, config, *images(), False).losses
    assert losses["r1"] > 0
    patches = images()[1].requires_grad_()
    state.adversary.discriminator.eval()
    penalty = r1_penalty(state.adversary.discriminator(patches), patches)
    assert losses["r1"].item() == pytest.approx(2 * penalty.item(), rel=0.2)  # one update later


# training with them


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_step_lowers_the_loss_of_its_network(kind, architecture):
    settings = (f"adversarial.kind={kind}", f"discriminator.architecture={architecture}")
    lr, hr = images()
    state, config = gan(*settings, adversarial=1.0)
    optimizers = {"discriminator": state.adversary.optimizer, "generator": state.optimizer}
    for moving in optimizers:
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = 1e-3 if name == moving else 0.0
        losses = [train_step(state, config, lr, hr.round(), False).losses[moving] for _ in range(8)]
        assert losses[-1] < losses[0], moving


def test_fp16_scales_its_gradients_and_leaves_out_the_step_that_overflows():
    state, config = gan("precision=fp16", pixel=1.0, adversarial=1.0)
    plain, _ = gan(pixel=1.0, adversarial=1.0)
    assert state.scaler is not None
    assert plain.scaler is None
    state.scaler._init_scale = 1024.0  # the usual 65536 would leave out the first steps
    train_step(state, config, *images(), False)
    train_step(plain, config, *images(), False)
    ours, theirs = gradients(state.generator), gradients(plain.generator)
    flat = [torch.cat([each[name].flatten() for name in each]) for each in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99
    assert flat[0].norm() == pytest.approx(flat[1].norm().item(), rel=0.02)

    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    state.scaler.update(2.0**80)
    train_step(state, config, *images(), False)
    assert all(
        torch.equal(value, before[name]) for name, value in state.generator.state_dict().items()
    )
    assert state.scaler.get_scale() == 2.0**79


def test_the_scale_of_fp16_survives_a_restart():
    state, config = gan("precision=fp16", pixel=1.0)
    train_step(state, config, *images(), False)
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
