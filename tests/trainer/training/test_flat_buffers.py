"""Parameters, gradients and moments as views of one flat tensor each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.config.load import load_config
from trainer.config.schema import OptimConfig
from trainer.training.flat_buffers import (
    PIGGYBACK,
    as_one_parameter,
    bump_versions,
    flatten_grads_,
    flatten_params_,
    views,
)
from trainer.training.optim import build_adam, take_step
from trainer.training.state import build_state
from trainer.training.step import StepReport, count_step, train_step

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1, bias=False))
    return made.to(memory_format=torch.channels_last)


def test_flat_parameters_keep_values_and_layout_and_no_graph():
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    (flat,) = flatten_params_(one.parameters())
    assert flat.grad_fn is None
    assert not flat.requires_grad
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert ours.is_leaf
        assert ours.requires_grad
    flat.zero_()
    assert not any(parameter.any() for parameter in one.parameters())


def test_views_are_where_the_parameters_are():
    one = network()
    parameters = list(one.parameters())
    (flat,) = flatten_params_(parameters)
    for parameter, view in zip(parameters, views(parameters, flat), strict=True):
        assert view.data_ptr() == parameter.data_ptr()
        assert view.stride() == parameter.stride()
    for parameter, view in zip(parameters, views(parameters, flat.clone()), strict=True):
        assert torch.equal(parameter, view)


def test_adam_over_one_tensor_moves_each_parameter_as_adam_over_all():
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    gradients = flatten_grads_(one.parameters())
    (flat,) = flatten_params_(one.parameters())
    ours = build_adam(OptimConfig(lr=0.1), [as_one_parameter(flat, gradients)])
    theirs = build_adam(OptimConfig(lr=0.1), other.parameters())
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):
        gradients.flat.zero_()
        theirs.zero_grad()
        for each in (one, other):
            each(x).square().sum().backward()
        take_step(ours, skip=torch.zeros(()))
        theirs.step()
    for ours_now, theirs_now in zip(one.parameters(), other.parameters(), strict=True):
        # a vector and its scalar tail round differently, and where the tail begins depends on the processor
        torch.testing.assert_close(ours_now, theirs_now, rtol=1e-6, atol=1e-6)
    assert len(gradients.flat) == len(flat) + PIGGYBACK


def test_bumped_versions_show_that_parameters_changed():
    one = network().requires_grad_(False)
    (flat,) = flatten_params_(one.parameters())
    versions = [parameter._version for parameter in one.parameters()]
    flat.add_(1)
    bump_versions(one)
    pairs = zip(one.parameters(), versions, strict=True)
    assert all(parameter._version > version for parameter, version in pairs)


def test_a_training_step_bumps_the_versions_of_generator_and_ema():
    config = load_config("tiny", stage="psnr", overrides=["ema.halflife_patches=8"])
    state = build_state(config, stage="psnr", scale=4, device=CPU, content_weights=None)
    watched = [next(network.parameters()) for network in (state.generator, state.ema)]
    before = [(each.clone(), each._version) for each in watched]
    lr, hr = torch.rand(8, 3, 8, 8), torch.rand(8, 3, 32, 32)
    count_step(state, config, train_step(state, config, lr, hr, False))
    for parameter, (value, version) in zip(watched, before, strict=True):
        assert not torch.equal(parameter, value)
        assert parameter._version > version


def test_a_report_travels_behind_the_gradients_and_comes_back_by_name():
    gradients = flatten_grads_(network().parameters())
    report = StepReport(
        {"pixel": torch.tensor(0.5), "adversarial": torch.tensor(2.0)}, torch.tensor(1.0)
    )
    report.pack(gradients.piggyback)
    gradients.flat /= 2  # the mean over two ranks, of which the other one sent zeros
    read = report.unpack(gradients.piggyback)
    gradients.flat.zero_()  # what was read stays
    assert {name: loss.item() for name, loss in read.losses.items()} == {
        "pixel": 0.25,
        "adversarial": 1.0,
    }
    assert read.stop_flag.item() == 0.5
    too_many = {str(number): torch.zeros(()) for number in range(PIGGYBACK)}
    with pytest.raises(AssertionError):
        StepReport(too_many, torch.zeros(())).pack(gradients.piggyback)
