"""Diagnostics of the loss balance are correct and do not change the training."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer.support import logged, train
from tests.trainer.training.support import SETTINGS, build_gan_state, make_batch
from trainer.config.load import load_config
from trainer.networks.discriminators import cached_spectral_weights
from trainer.training.diagnostics import (
    add_diagnostics,
    find_imbalances,
    gradient_shares,
    is_due,
    largest_singular_value,
    mean_diagnostics,
)
from trainer.training.state import build_state
from trainer.training.step import train_step

TERMS = ("pixel", "content", "adversarial")


def test_shares_are_the_norms_of_the_gradients_over_their_sum():
    sr = torch.rand(2, 3, 4, 4, requires_grad=True)
    weighted = {"a": 3 * sr.sum(), "b": (sr**2).sum(), "c": 0 * sr.mean()}
    shares = gradient_shares(weighted, sr)
    norms = {"a": 3 * math.sqrt(96), "b": 2 * sr.detach().double().norm().item(), "c": 0.0}
    for name, norm in norms.items():
        wanted = norm / sum(norms.values())
        assert shares[f"share_{name}"].item() == pytest.approx(wanted, rel=1e-6)


def test_the_step_tells_each_terms_pull_at_the_output():
    """Against the gradient that stands at the output after a step with one term alone."""
    weights = {"pixel": 1.0, "content": 0.5, "adversarial": 0.1}
    lr, hr = make_batch()
    norms = {}
    for term, weight in weights.items():
        state, config = build_gan_state(**{term: weight})
        caught = []
        forward = state.generator.forward

        def keeping(lr, forward=forward, caught=caught):
            caught.append(forward(lr))
            caught[0].retain_grad()
            return caught[0]

        state.generator.forward = keeping
        train_step(state, config, lr, hr, False)
        norms[term] = caught[0].grad.double().norm().item()
    state, config = build_gan_state(**weights)
    state.progress.patches_seen = 2  # the second of two steps
    losses = train_step(state, config, lr, hr, False).losses
    seen = mean_diagnostics(state.telemetry)
    for term, norm in norms.items():
        assert seen[f"share_{term}"] == pytest.approx(norm / sum(norms.values()), rel=1e-3)
        assert seen[f"weighted_{term}"] == pytest.approx(weights[term] * losses[term].item())
    for name, network in (
        ("grad_norm_generator", state.generator),
        ("grad_norm_discriminator", state.adversary.discriminator),
    ):
        each = torch.cat([p.grad.flatten() for p in network.parameters()]).double()
        assert seen[name] == pytest.approx(each.norm().item(), rel=1e-5)
    assert seen["sigma_max"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("stage", ["psnr", "gan"])
@pytest.mark.parametrize("architecture", ["vgg", "unet"])
def test_looking_changes_no_bit_of_what_is_trained(stage, architecture):
    ended = []
    for every in (0, 2):  # patches: never within these steps, and at each of them
        overrides = [
            *SETTINGS, "epoch_patches=64", f"telemetry.every_patches={every}",
            f"discriminator.architecture={architecture}", "adversarial.r1=1", "adversarial.r1_every=2",
        ]  # fmt: skip
        config = load_config("tiny", stage=stage, overrides=overrides)
        device = torch.device("cpu")
        state = build_state(config, stage=stage, scale=4, device=device, content_weights=None)
        for _ in range(3):
            train_step(state, config, *make_batch(), False)
            state.progress.patches_seen += config.batch_size
        assert bool(state.telemetry) == bool(every)
        networks = [state.generator]
        networks += [state.adversary.discriminator] if state.adversary else []
        ended.append([value for each in networks for value in each.state_dict().values()])
        ended[-1].append(torch.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))


def test_a_look_falls_on_each_epochs_last_step_and_every_so_many_patches():
    def looks(every):
        settings = {"batch_size": 4, "epoch": 20, "every": every}
        return [seen for seen in range(0, 40, 4) if is_due(patches_seen=seen, **settings)]

    assert looks(0) == [16, 36]
    assert looks(8) == [4, 12, 16, 20, 28, 36]
    assert looks(6) == [4, 8, 16, 20, 28, 32, 36]  # the step in which a multiple of 6 is reached
    assert looks(1) == list(range(0, 40, 4))


def test_the_log_holds_the_mean_over_the_looks_of_an_epoch():
    sums: dict[str, torch.Tensor] = {}
    for value in (1.0, 4.0):
        add_diagnostics(sums, {"share_pixel": torch.tensor(value), "x": torch.tensor(math.inf)})
    assert mean_diagnostics(sums) == {"share_pixel": 2.5}
    assert mean_diagnostics({}) == {}


def test_the_largest_singular_value_is_that_of_the_weights_in_use():
    state, _ = build_gan_state()
    discriminator = state.adversary.discriminator.eval()
    for parameter in discriminator.parameters():
        parameter.data.normal_()  # the singular vectors know nothing of these
    before = {name: value.clone() for name, value in discriminator.named_buffers()}
    with cached_spectral_weights(discriminator.train()):
        moved = {name: value.clone() for name, value in discriminator.named_buffers()}
        found = largest_singular_value(discriminator).item()
        assert all(torch.equal(v, moved[name]) for name, v in discriminator.named_buffers())
        wanted = max(
            torch.linalg.svdvals(layer.weight.detach().double().flatten(1))[0].item()
            for layer in discriminator.children()
        )
    assert any(not torch.equal(value, before[name]) for name, value in moved.items())
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found > 1.001


def test_an_imbalance_is_told_once_and_with_its_fix():
    told: set[str] = set()
    row = {"share_pixel": 0.0199, "share_content": 0.98, "share_adversarial": 0.0001}
    first, second = find_imbalances(row, told)
    assert "content loss makes 98.0%" in first
    assert "lower loss.content" in first
    assert "adversarial loss makes 0.010%" in second
    assert "raise loss.adversarial" in second
    assert not list(find_imbalances(row, told))
    even = {"share_pixel": 0.4, "share_content": 0.5, "share_adversarial": 0.1}
    assert not list(find_imbalances(even, set()))
    assert not list(find_imbalances({"epoch": 1, "loss_pixel": 0.1}, set()))


def test_each_row_of_a_run_tells_and_a_resumed_run_tells_the_same(tiny_shards, tmp_path):
    more = ["--set", "telemetry.every_patches=4", "--set", "gan.loss.adversarial=1e-9"]
    whole = train(tiny_shards, tmp_path / "whole", *more)
    assert "too little for a GAN" in whole.stderr.replace("\n", " ")
    for row in logged(tmp_path / "whole"):
        terms = TERMS if row["stage"] == "gan" else ()
        assert {f"share_{term}" for term in terms} <= row.keys()
        assert row["grad_norm_generator"] > 0
        if terms:
            assert sum(row[f"share_{term}"] for term in terms) == pytest.approx(1)
    train(tiny_shards, tmp_path / "parts", *more, "--stage", "psnr")
    train(tiny_shards, tmp_path / "parts", *more, "--stage", "gan")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
