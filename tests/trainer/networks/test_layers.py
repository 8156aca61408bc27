"""The last convolution of each generator is in float32, even under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator

SIZES = {
    "rrdbnet": GeneratorConfig(features=8, blocks=1, growth=4, norm="none"),
    "srresnet": GeneratorConfig(architecture="srresnet", features=8, blocks=1),
    "srcnn": GeneratorConfig(architecture="srcnn", features=8),
}
LAST = {"rrdbnet": "conv_last", "srresnet": "conv_last", "srcnn": "conv3"}


@pytest.fixture(params=SIZES)
def architecture(request) -> str:
    return request.param


def generator(architecture: str) -> nn.Module:
    torch.manual_seed(3)
    return build_generator(SIZES[architecture], scale=4)


def test_under_autocast_images_leave_in_float32_without_rounding(architecture):
    module, seen = generator(architecture), []
    last = module.get_submodule(LAST[architecture])
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = module(torch.rand(2, 3, 12, 12))
        coarse = nn.Conv2d.forward(last, seen[0])
    with torch.no_grad():
        wanted = nn.Conv2d.forward(last.double(), seen[0].double())
    assert (found.dtype, coarse.dtype) == (torch.float32, torch.bfloat16)
    assert (found - wanted).abs().max() < 1e-5
    assert (coarse - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_it_is_the_plain_convolution(architecture, dtype):
    module = generator(architecture).to(dtype)
    seen: list[torch.Tensor] = []
    last = module.get_submodule(LAST[architecture])
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = module(torch.rand(1, 3, 8, 8, dtype=dtype))
    assert found.dtype == dtype
    with torch.no_grad():
        wanted = nn.Conv2d.forward(last, seen[0])
    assert torch.equal(found, wanted)


def test_its_gradients_are_float32_and_reach_every_weight(architecture):
    module = generator(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        sr = module(torch.rand(1, 3, 8, 8))
    sr.abs().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any(), name
