"""Triton kernels without a GPU: interpreted for their results, and compiled; run by `make test-kernels`."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.kernels import bias_leaky_relu, dense_block
from trainer.networks.discriminators import UNetDiscriminator, VGGDiscriminator
from trainer.networks.feature_extractors import VGGFeatures
from trainer.networks.rrdb import RRDB, DenseBlock, RRDBNet
from trainer.training.acceleration import block_params, fuse

pytestmark = pytest.mark.kernels
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def interpreted():
    """Triton reads the variable at import, which torch may have done already."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail(
            "set TRITON_INTERPRET=1 before anything imports Triton, as make test-kernels does"
        )


def body(norm: str) -> nn.Sequential:
    """Two residuals of residuals with weights that are neither small nor alike."""
    made = nn.Sequential(*(RRDB(features=32, growth=32, norm=norm) for _ in range(2)))
    for name, parameter in made.named_parameters():
        with torch.no_grad():
            parameter.normal_(0, 0.03 if parameter.ndim == 4 else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return made.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_blocks_their_gradients_and_statistics_are_those_of_float64(norm, kept):
    ours = body(norm)
    theirs = nn.Sequential(*(RRDB(features=32, growth=32, norm=norm) for _ in range(2))).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    mine, wanted = x.clone().requires_grad_(), x.double().requires_grad_()
    for parameter in ours.parameters():
        parameter.grad = torch.full_like(parameter, 0.5) if kept else None

    out = theirs(wanted)
    back = torch.randn_like(out)
    out.backward(back)
    blocks = [block_params(each) for each in ours.modules() if isinstance(each, DenseBlock)]
    made = dense_block.run_blocks_accumulating_grads(mine, blocks)
    made.backward(back.float())

    # the branches alone, without the residual path
    assert_near(made - x, out - x)
    assert_near(mine.grad - back, wanted.grad - back)
    known = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        found = parameter.grad - 0.5 if kept else parameter.grad
        if norm == "batch" and "conv" in name and name.endswith("bias"):
            assert not found.any()  # float64 has rounding of 1e-17 there
        else:
            assert_near(found, known[name].grad)
    statistics = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), statistics[name].double())


def assert_near(found, wanted):
    assert (found.double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("channels", "factor", "slope"), [(16, 1, 0.2), (32, 1, 0.0), (64, 2, 0.2), (144, 3, 0.1)]
)
def test_bias_and_leaky_relu_with_and_without_sub_pixels_are_torchs(channels, factor, slope):
    given = torch.randn(2, channels, 6, 10).contiguous(memory_format=torch.channels_last)
    mine, wanted = given.clone().requires_grad_(), given.clone().requires_grad_()
    bias = torch.randn(channels)
    ours, theirs = bias.clone().requires_grad_(), bias.clone().requires_grad_()
    # torch keeps the pixels of a channel side by side, the kernels the channels of a pixel
    phases = torch.arange(channels).view(-1, factor**2).T.flatten().argsort()
    out = F.leaky_relu(wanted + theirs.view(1, -1, 1, 1), slope)
    out = F.pixel_shuffle(out[:, phases], factor)
    back = torch.randn_like(out)
    out.backward(back)
    made = bias_leaky_relu.add_bias_leaky_relu_shuffle(mine * 1, ours, slope, factor)
    made.backward(back)
    assert torch.equal(made, out)
    assert torch.equal(mine.grad, wanted.grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_what_is_frozen_stays_so_and_infinite_values_stay_no_nans():
    ours = body("none")
    for parameter in ours.parameters():
        parameter.grad = torch.zeros_like(parameter)
    frozen = ours[0].rdb1.requires_grad_(False)
    x = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    blocks = [block_params(each) for each in ours.modules() if isinstance(each, DenseBlock)]
    made = dense_block.run_blocks_accumulating_grads(x, blocks)
    made.sum().backward(retain_graph=True)
    assert not any(parameter.grad.any() for parameter in frozen.parameters())
    assert all(parameter.grad.any() for parameter in ours[1].parameters())
    with pytest.raises(RuntimeError, match="no second backward pass"):
        made.sum().backward()

    given = torch.full((1, 16, 2, 2), -torch.inf).contiguous(memory_format=torch.channels_last)
    assert not bias_leaky_relu.add_bias_leaky_relu(given, torch.zeros(16), 0.0).any()


NETWORKS = {
    "pixelshuffle": lambda: RRDBNet(scale=2, features=32, blocks=1, growth=32, norm="batch"),
    "nearest_conv": lambda: RRDBNet(
        scale=2, features=32, blocks=1, growth=32, upsampler="nearest_conv"
    ),
    "vgg": lambda: VGGDiscriminator(features=16, dense=8),
    "unet": lambda: UNetDiscriminator(features=16),
    "features": lambda: VGGFeatures(
        layers=("conv1_2", "conv2_1"), activation="before", input_range="imagenet"
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_network_and_its_gradients_are_those_of_the_plain_one(name, monkeypatch):
    calls = []

    def supports(x: torch.Tensor, *, channels: int) -> bool:
        calls.append(channels)
        return channels & (channels - 1) == 0 and channels >= 16

    monkeypatch.setattr(bias_leaky_relu, "supports", supports)
    monkeypatch.setattr(dense_block, "supports", lambda x, block: calls.append(0) or True)
    plain = NETWORKS[name]().to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse(fused)
    side = 16 if isinstance(plain, RRDBNet) else 32
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    outputs = []
    for network in (plain, fused):
        x = image.clone().requires_grad_()
        out = network(x)
        total = sum(each.square().mean() for each in (out if isinstance(out, list) else [out]))
        total.backward()
        grads = {name: each.grad for name, each in network.named_parameters()}
        outputs.append((total.detach(), grads | {"x": x.grad}))
    assert calls
    # batch normalisation amplifies the rounding of a fresh network's small maps
    bound = 1e-2 if name == "pixelshuffle" else 1e-4
    (expected, gradients), (found, fused_gradients) = outputs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    for key, gradient in gradients.items():
        idle = ".rdb" in key and "conv" in key and key.endswith("bias") and name == "pixelshuffle"
        if not idle:  # batch normalisation leaves rounding of 0
            error = (fused_gradients[key] - gradient).norm()
            assert error <= bound * gradient.norm() + 1e-9, key


def test_autograd_grad_through_fused_blocks_is_an_error_and_adds_nothing():
    ours = body("none")
    for parameter in ours.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    blocks = [block_params(ours[0].rdb1)]
    for wanted in (x, next(ours.parameters())):
        loss = dense_block.run_blocks_accumulating_grads(x, blocks).sum()
        with pytest.raises(RuntimeError, match=r"not torch.autograd.grad"):
            torch.autograd.grad(loss, wanted)
    assert not any(parameter.grad.any() for parameter in ours.parameters())


@pytest.mark.parametrize("capability", [80, 90])
def test_every_launch_of_the_papers_step_compiles_and_spills_next_to_nothing(
    capability, monkeypatch
):
    monkeypatch.delenv("TRITON_INTERPRET")
    made = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py"), str(capability)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(made.stdout)
    assert len(found) > 30
    assert {name.split()[0] for name in found} == {
        "convolve",
        "norms",
        "weights",
        "bias_leaky_relu",
    }
    # Triton 3.6 spills nothing, 3.7 four registers of one
    assert [name for name, stack in found.items() if stack > 64] == []
