"""The U-Net and patch discriminators against published counts and plain functional code."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from trainer.config.schema import SMALLEST_PATCH, DiscriminatorConfig
from trainer.models import build_discriminator
from trainer.networks.discriminators import (
    PatchDiscriminator,
    UNetDiscriminator,
    cached_spectral_weights,
)


def built(architecture: str, features: int = 4) -> nn.Module:
    return build_discriminator(DiscriminatorConfig(architecture=architecture, features=features))


def plain_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Each layer's weight over its largest singular value, from the raw weights and the vectors."""
    found = {}
    for name, layer in module.named_children():
        if parametrize.is_parametrized(layer):
            raw = layer.parametrizations.weight.original.detach().double()
            spectral = layer.parametrizations.weight[0]
            u, v = spectral._u.double(), spectral._v.double()
            found[name] = raw / (u @ raw.flatten(1) @ v)
        else:
            found[name] = layer.weight.detach().double()
    return found


def lrelu(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def test_the_u_net_is_real_esrgans_with_its_published_number_of_parameters():
    module = UNetDiscriminator()
    assert sum(parameter.numel() for parameter in module.parameters()) == 4_376_897
    plain = [
        name for name, layer in module.named_children() if not parametrize.is_parametrized(layer)
    ]
    assert plain == ["conv0", "conv9"]
    biased = [name for name, layer in module.named_children() if layer.bias is not None]
    assert biased == ["conv0", "conv9"]


def test_the_u_net_computes_what_its_figure_shows():
    module = built("unet").double().eval()
    weights = plain_weights(module)
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64)

    def conv(x, number, **settings):
        return F.conv2d(x, weights[f"conv{number}"], padding=1, **settings)

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    x0 = lrelu(conv(image, 0, bias=module.conv0.bias))
    x1 = lrelu(conv(x0, 1, stride=2))
    x2 = lrelu(conv(x1, 2, stride=2))
    x3 = lrelu(conv(x2, 3, stride=2))
    x4 = lrelu(conv(up(x3), 4)) + x2
    x5 = lrelu(conv(up(x4), 5)) + x1
    x6 = lrelu(conv(up(x5), 6)) + x0
    wanted = conv(lrelu(conv(lrelu(conv(x6, 7)), 8)), 9, bias=module.conv9.bias)
    assert wanted.shape == (2, 1, 16, 24)
    torch.testing.assert_close(module(image), wanted, rtol=1e-9, atol=1e-9)


def test_the_patch_discriminator_is_pix2pixs_70x70_with_spectral_norm():
    module = built("patch").double().eval()
    weights = plain_weights(module)
    x = image = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    for number, stride in enumerate((2, 2, 2, 1, 1)):
        layer = getattr(module, f"conv{number}")
        x = F.conv2d(x, weights[f"conv{number}"], layer.bias, padding=1, stride=stride)
        x = lrelu(x) if number < 4 else x
    assert x.shape == (1, 1, 14, 14)
    torch.testing.assert_close(module(image), x, rtol=1e-9, atol=1e-9)
    assert all(parametrize.is_parametrized(layer) for layer in module.children())

    # what one logit sees is 70 pixels wide
    image.requires_grad_()
    module(image)[0, 0, 7, 7].backward()
    seen = image.grad.abs().sum((0, 1, 2)).nonzero()
    assert seen.max() - seen.min() + 1 == 70


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
@pytest.mark.parametrize("size", [32, 52, 128])
def test_every_discriminator_takes_patches_from_32_up(architecture, size):
    module = built(architecture)
    logits = module(torch.rand(2, 3, size, size))
    assert logits.shape[0] == 2
    assert logits.isfinite().all()


@pytest.mark.parametrize("module", [UNetDiscriminator(features=4), PatchDiscriminator(features=4)])
def test_spectral_norm_agrees_with_a_float64_decomposition(module):
    layers = [each for each in module.children() if parametrize.is_parametrized(each)]
    for _ in range(300):
        with cached_spectral_weights(module):
            pass
    for layer in layers:
        raw = layer.parametrizations.weight.original.detach().double().flatten(1)
        wanted = raw / torch.linalg.svdvals(raw)[0]
        module.eval()
        torch.testing.assert_close(layer.weight.double().flatten(1), wanted, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("architecture", SMALLEST_PATCH)
def test_the_smallest_patch_is_judged_and_a_smaller_one_cannot_be(architecture):
    module, least = built(architecture), SMALLEST_PATCH[architecture]
    assert module(torch.rand(1, 3, least, least)).isfinite().all()
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size|[Oo]utput size"):
        module(torch.rand(1, 3, least - 1, least - 1))


@pytest.mark.parametrize("architecture", ["vgg", "unet", "patch"])
def test_names_of_spectrally_normalised_layers_are_those_of_stored_checkpoints(architecture):
    module = built(architecture)
    names = set(module.state_dict())
    for name, layer in module.named_children():
        if parametrize.is_parametrized(layer):
            stem = f"{name}.parametrizations.weight"
            assert {f"{stem}.original", f"{stem}.0._u", f"{stem}.0._v"} <= names
            assert f"{name}.weight" not in names


@pytest.mark.parametrize("training", [True, False])
def test_a_normalised_weight_keeps_the_memory_format_of_its_parameter(training):
    module = built("vgg", features=16).to(memory_format=torch.channels_last).train(training)
    with cached_spectral_weights(module):
        weight = module.conv1_0.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_r1_differentiates_a_normalised_weight_twice():
    layer = spectral_norm(nn.Conv2d(3, 4, 2)).double().eval()
    image = torch.rand(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    original = layer.parametrizations.weight.original.detach().clone().requires_grad_()

    def penalty(original: torch.Tensor) -> torch.Tensor:
        weight = layer.parametrizations.weight[0](original)
        logits = F.conv2d(image, weight, layer.bias).square().sum()
        (gradient,) = torch.autograd.grad(logits, image, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, (original,))


def test_a_u_net_enlarges_its_maps_in_their_own_precision():
    module, dtypes = built("unet", features=16).eval(), []
    for name in ("conv4", "conv5", "conv6"):
        layer = module.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, given: dtypes.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.rand(1, 3, 16, 16))
    assert dtypes == [torch.bfloat16] * 3
