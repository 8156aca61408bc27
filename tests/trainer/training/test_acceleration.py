"""Fused forms compute what the plain networks compute, and fall back to them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.kernels import dense_block
from trainer.kernels.autograd import check_grads_accumulate, once_differentiable
from trainer.networks.discriminators import (
    PatchDiscriminator,
    UNetDiscriminator,
    VGGDiscriminator,
    cached_spectral_weights,
)
from trainer.networks.feature_extractors import VGGFeatures
from trainer.networks.rrdb import DenseBlock, RRDBNet
from trainer.networks.srresnet import SRResNet
from trainer.training.acceleration import FusedBody, FusedConvLeakyReLU, block_params, fuse

NETWORKS = {
    "rrdbnet": lambda: RRDBNet(scale=2, features=16, blocks=1, growth=8, norm="batch"),
    "nearest": lambda: RRDBNet(scale=2, features=16, blocks=1, growth=8, upsampler="nearest_conv"),
    "srresnet": lambda: SRResNet(scale=2, features=16, blocks=1),
    "vgg": lambda: VGGDiscriminator(features=16, dense=8),
    "unet": lambda: UNetDiscriminator(features=16),
    "patch": lambda: PatchDiscriminator(features=16),
    "before": lambda: VGGFeatures(
        layers=("conv1_2", "conv2_1"), activation="before", input_range="unit"
    ),
    "after": lambda: VGGFeatures(
        layers=("conv1_2", "conv2_1"), activation="after", input_range="unit"
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_fused_network_falls_back_to_the_plain_one_bit_for_bit(name, training):
    plain = NETWORKS[name]().train(training)
    fused = copy.deepcopy(plain)
    fuse(fused)
    fuse(fused)  # a second time changes nothing
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    found, expected = fused(x), plain(x)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # one power iteration, one batch of statistics


def test_weights_stay_in_place_and_the_layers_of_the_paper_stay_what_they_are():
    network = RRDBNet(scale=2, features=16, blocks=1, growth=8)
    before = {name: id(parameter) for name, parameter in network.named_parameters()}
    fuse(network)
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == before
    assert type(network.body) is FusedBody
    assert isinstance(network.conv_hr, FusedConvLeakyReLU)
    assert type(RRDBNet(scale=2, features=16, blocks=1, growth=8).body) is nn.Sequential


def test_fused_spectral_weights_are_cached_and_named_as_plain_ones():
    network = VGGDiscriminator(features=16, dense=8)
    fuse(network)
    assert "conv0_0.parametrizations.weight.original" in network.state_dict()
    with cached_spectral_weights(network):
        assert network.conv0_0.weight is network.conv0_0.weight


@pytest.mark.parametrize(
    ("shape", "features", "growth", "norm", "wanted"),
    [
        ((32, 64, 32, 32), 64, 32, "none", True),
        ((32, 64, 32, 32), 64, 32, "batch", True),
        ((1, 32, 16, 16), 32, 32, "none", True),
        ((4, 64, 4, 64), 64, 32, "none", True),
        ((32, 64, 24, 24), 64, 32, "none", False),  # rows that are no power of two
        ((1, 64, 8, 16), 64, 32, "none", False),  # half of a program that normalises
        ((64, 64, 32, 32), 64, 32, "batch", True),
        ((128, 64, 32, 32), 64, 32, "batch", False),  # more moments than a program has room for
        ((128, 64, 32, 32), 64, 32, "none", True),
        ((64, 32, 32, 32), 32, 128, "batch", False),  # of a growing map, too
        ((32, 48, 32, 32), 48, 32, "none", False),
        ((32, 256, 32, 32), 256, 32, "none", False),  # more than shared memory holds
        ((32, 64, 32, 32), 64, 16, "none", False),
        ((1, 64, 2, 256), 64, 32, "none", False),  # a row is longer than a program
        ((4096, 64, 64, 64), 64, 32, "none", False),  # more than 32 bits count
    ],
)
def test_fused_blocks_take_the_shapes_that_their_kernels_support(
    shape, features, growth, norm, wanted
):
    module = DenseBlock(features=features, growth=growth, norm=norm)
    block = block_params(module.to(memory_format=torch.channels_last))
    x = SimpleNamespace(shape=shape, is_cuda=True, dtype=torch.bfloat16)
    assert dense_block.supports(x, block) is wanted
    assert not dense_block.supports(
        SimpleNamespace(shape=shape, is_cuda=False, dtype=x.dtype), block
    )
    assert not dense_block.supports(
        SimpleNamespace(shape=shape, is_cuda=True, dtype=torch.float32), block
    )
    if norm == "batch":
        assert not dense_block.supports(x, block_params(module.eval()))
    module.to(memory_format=torch.contiguous_format)
    assert not dense_block.supports(x, block_params(module.train()))


class Accumulating(torch.autograd.Function):
    """x + sum of parameters, which adds to `.grad` by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x + sum(parameter.sum() for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, *accumulators = (node for node, _ in ctx.next_functions)
        check_grads_accumulate(accumulators)
        for parameter in ctx.saved_tensors:
            if parameter.requires_grad:
                parameter.grad += gradients[0].sum()
        return gradients[0], *(None for _ in ctx.saved_tensors)


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    made = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))]
    for parameter in made:
        parameter.grad = torch.zeros_like(parameter)
    made[2].requires_grad_(False)
    return made


def loss_of(parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    x = torch.ones(2, requires_grad=True)
    return x, Accumulating.apply(x * 2, *parameters).sum()


def test_gradients_are_added_by_a_backward_pass(parameters):
    for times in (1, 2):
        x, loss = loss_of(parameters)
        loss.backward()
        assert x.grad.tolist() == [2, 2]
        assert parameters[0].grad.tolist() == [2 * times] * 2
        assert parameters[2].grad.tolist() == [0]
    x, loss = loss_of(parameters)
    loss.backward(inputs=[x, *parameters[:2]])
    assert parameters[1].grad.tolist() == [6] * 3


STARTS = {
    "input": lambda loss, x, parameters: torch.autograd.grad(loss, x),
    "one parameter": lambda loss, x, parameters: torch.autograd.grad(loss, parameters[0]),
    "all parameters": lambda loss, x, parameters: torch.autograd.grad(loss, parameters[:2]),
    "inputs=": lambda loss, x, parameters: loss.backward(inputs=[x, parameters[0]]),
}


@pytest.mark.parametrize("start", STARTS)
def test_autograd_grad_is_an_error_where_gradients_would_be_added(parameters, start):
    x, loss = loss_of(parameters)
    with pytest.raises(RuntimeError, match=r"use backward\(\) .* not torch.autograd.grad"):
        STARTS[start](loss, x, parameters)
    assert not any(parameter.grad.any() for parameter in parameters)


def test_a_hand_written_gradient_is_not_differentiated_twice(parameters):
    x, loss = loss_of(parameters)
    with pytest.raises(NotImplementedError, match="differentiated only once"):
        torch.autograd.grad(loss, x, create_graph=True)
