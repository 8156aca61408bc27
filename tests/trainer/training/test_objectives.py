"""Which loss moves which network in a step, and by which gradient."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.training.support import SETTINGS, build_gan_state, collect_gradients, make_batch
from trainer.config.load import load_config
from trainer.losses.adversarial import discriminator_loss
from trainer.training.state import build_state
from trainer.training.step import train_step


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, now in module.state_dict().items() if not torch.equal(now, before[name])}


@pytest.mark.parametrize("term", ["pixel", "content", "adversarial"])
def test_each_loss_alone_reaches_every_weight_of_the_generator(term):
    state, config = build_gan_state(**{term: 1.0})
    before = snapshot(state.generator)
    losses = train_step(state, config, *make_batch(), False).losses
    assert losses["generator"].item() == pytest.approx(losses[term].item())
    found = collect_gradients(state.generator)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    assert changed(state.generator, before) == found.keys()


def test_without_any_loss_the_generator_gets_no_gradient():
    """The tests above see the loss and not something else."""
    state, config = build_gan_state()
    train_step(state, config, *make_batch(), False)
    assert all(
        gradient.abs().max() == 0 for gradient in collect_gradients(state.generator).values()
    )


def test_the_adversarial_gradient_is_that_of_the_non_saturating_loss():
    state, config = build_gan_state(adversarial=1.0)
    other, _ = build_gan_state(adversarial=1.0)
    lr, hr = make_batch()
    discriminator = other.adversary.discriminator.eval()
    logits = discriminator(other.generator(lr))
    (-torch.log(torch.sigmoid(logits))).mean().backward()
    train_step(state, config, lr, hr, False)
    wanted = collect_gradients(other.generator)
    for name, gradient in collect_gradients(state.generator).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-7)


def test_the_generators_gradient_is_the_weighted_sum_of_its_terms():
    weights = {"pixel": 1.0, "content": 0.5, "adversarial": 0.005}
    total: dict[str, torch.Tensor] = {}
    for term, weight in weights.items():
        state, config = build_gan_state(**{term: 1.0})
        train_step(state, config, *make_batch(), False)
        for name, gradient in collect_gradients(state.generator).items():
            total[name] = total.get(name, 0) + weight * gradient
    state, config = build_gan_state(**weights)
    losses = train_step(state, config, *make_batch(), False).losses
    for name, gradient in collect_gradients(state.generator).items():
        torch.testing.assert_close(gradient, total[name], rtol=1e-3, atol=1e-6)
    summed = sum(weight * losses[term].item() for term, weight in weights.items())
    assert losses["generator"].item() == pytest.approx(summed, rel=1e-5)


def test_each_half_of_the_step_moves_its_own_network_alone(monkeypatch):
    state, config = build_gan_state(pixel=1.0, content=1.0, adversarial=1.0)
    generator, discriminator = state.generator, state.adversary.discriminator
    seen: dict[str, object] = {}
    moves = {"generator": state.optimizer.step, "discriminator": state.adversary.optimizer.step}

    def generator_moves():
        before = snapshot(discriminator)
        moves["generator"]()
        seen["discriminator moved"] = changed(discriminator, before)
        seen["generator"] = snapshot(generator)

    def discriminator_moves():
        seen["discriminator's gradient"] = collect_gradients(discriminator)
        moves["discriminator"]()

    monkeypatch.setattr(state.optimizer, "step", generator_moves)
    monkeypatch.setattr(state.adversary.optimizer, "step", discriminator_moves)
    content = snapshot(state.adversary.content)
    at_start = snapshot(discriminator)
    train_step(state, config, *make_batch(), False)

    assert not seen["discriminator moved"]
    assert not changed(generator, seen["generator"])
    assert all(gradient.abs().max() > 0 for gradient in seen["discriminator's gradient"].values())
    assert changed(discriminator, at_start) >= dict(discriminator.named_parameters()).keys()
    assert not changed(state.adversary.content, content)
    assert all(parameter.grad is None for parameter in state.adversary.content.parameters())


def test_the_discriminators_gradient_is_that_of_its_own_loss_alone():
    state, config = build_gan_state(pixel=1.0, content=1.0, adversarial=1.0)
    other, _ = build_gan_state(pixel=1.0, content=1.0, adversarial=1.0)
    lr, hr = make_batch()
    train_step(state, config, lr, hr, False)
    discriminator = other.adversary.discriminator.train()
    real, fake = discriminator(torch.cat((hr, other.generator(lr).detach()))).chunk(2)
    discriminator_loss("non-saturating", real, fake).backward()
    wanted = collect_gradients(discriminator)
    assert len(wanted) == 24
    for name, gradient in collect_gradients(state.adversary.discriminator).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)


def test_the_second_step_starts_from_no_old_gradient():
    """Two steps on a standing generator leave the gradient of one."""
    found = []
    for steps in (1, 2):
        state, config = build_gan_state(pixel=1.0)
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(steps):
            train_step(state, config, *make_batch(), False)
        found.append(collect_gradients(state.generator))
    for name, once in found[0].items():
        torch.testing.assert_close(found[1][name], once)


def test_the_discriminator_learns_to_tell_and_the_generator_to_fool_it():
    lr, hr = make_batch()
    hr = hr.round()  # nothing that the generator makes
    state, config = build_gan_state(adversarial=1.0)
    for optimizer, rate in ((state.optimizer, 0.0), (state.adversary.optimizer, 2e-3)):
        optimizer.param_groups[0]["lr"] = rate
    losses = [train_step(state, config, lr, hr, False).losses for _ in range(40)]
    assert losses[-1]["discriminator"] < losses[0]["discriminator"] - 0.01
    assert losses[-1]["d_real"] > losses[-1]["d_fake"]
    for optimizer, rate in ((state.optimizer, 2e-3), (state.adversary.optimizer, 0.0)):
        optimizer.param_groups[0]["lr"] = rate
    more = [train_step(state, config, lr, hr, False).losses for _ in range(40)]
    assert more[-1]["adversarial"] < more[0]["adversarial"] - 0.01


def test_the_step_reports_the_means_it_promises():
    state, config = build_gan_state(pixel=1.0)
    losses = train_step(state, config, *make_batch(), False).losses
    assert losses.keys() == {
        "pixel", "content", "adversarial", "generator", "discriminator", "d_real", "d_fake",
    }  # fmt: skip
    for name, value in losses.items():
        assert value.shape == (), name
        assert value.dtype == torch.float32, name
        assert not value.requires_grad, name
    assert 0 < losses["d_real"] < 1
    assert 0 < losses["d_fake"] < 1


def test_bf16_gives_the_gradient_of_float32_about():
    found = []
    for bf16 in (False, True):
        state, config = build_gan_state(pixel=1.0, content=1.0, adversarial=0.005)
        losses = train_step(state, config, *make_batch(), bf16).losses
        assert losses["generator"].dtype == torch.float32
        found.append(torch.cat([p.grad.flatten() for p in state.generator.parameters()]))
        assert found[-1].dtype == torch.float32
    likeness = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert likeness > 0.98


def test_stage_psnr_has_the_pixel_loss_alone():
    config = load_config("tiny", stage="psnr", overrides=SETTINGS)
    device = torch.device("cpu")
    state = build_state(config, stage="psnr", scale=4, device=device, content_weights=None)
    other = build_state(config, stage="psnr", scale=4, device=device, content_weights=None)
    lr, hr = make_batch()
    (other.generator(lr) - hr).abs().mean().backward()
    losses = train_step(state, config, lr, hr, False).losses
    assert losses.keys() == {"pixel"}
    assert state.adversary is None
    wanted = collect_gradients(other.generator)
    for name, gradient in collect_gradients(state.generator).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)
