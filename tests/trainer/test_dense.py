"""The dense block input by input is the dense block."""

from __future__ import annotations

import copy

import pytest
import torch

from trainer.networks.rrdb import DenseBlock, RRDBNet

CL = torch.channels_last


def gradients_of(block, x, form, autocast=None):
    block = copy.deepcopy(block).train()
    for each in block.modules():
        if isinstance(each, DenseBlock):
            each.form = form
    given = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
        out = block(given)
    out.float().square().mean().backward() if autocast else out.square().mean().backward()
    found = {name: each.grad for name, each in block.named_parameters()}
    return out.detach(), found | {"x": given.grad}


@pytest.mark.parametrize("form", ["push", "hybrid"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_outputs_and_all_gradients_are_those_of_the_plain_form(form, norm):
    block = DenseBlock(features=6, growth=4, norm=norm).double().to(memory_format=CL)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 6, 7, 5, dtype=torch.double)
    wanted, expected = gradients_of(block, x, "plain")
    out, found = gradients_of(block, x, form)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def distance(found, wanted):
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("form", ["push", "hybrid"])
def test_in_bf16_it_is_as_near_to_float32_as_the_plain_form(form):
    block = DenseBlock(features=32, growth=16, norm="none").to(memory_format=CL)
    x = torch.randn(2, 32, 16, 16).to(memory_format=CL)
    exact, gradients = gradients_of(block, x, "plain")
    plain_out, plain = gradients_of(block, x, "plain", autocast=True)
    out, found = gradients_of(block, x, form, autocast=True)
    assert out.dtype == plain_out.dtype
    assert distance(out, exact) < 1.5 * distance(plain_out, exact)
    for name, gradient in gradients.items():
        assert found[name].dtype == torch.float32, name
        assert distance(found[name], gradient) < 2.5 * distance(plain[name], gradient), name


def test_evaluation_uses_the_plain_form_whatever_training_uses():
    net = RRDBNet(features=8, blocks=1, growth=4).eval()
    x = torch.rand(1, 3, 9, 9)
    wanted = net(x)
    for each in net.modules():
        if isinstance(each, DenseBlock):
            each.form = "hybrid"
    assert torch.equal(net(x), wanted)
