"""Generator and discriminator against published counts, BasicSR's names and plain functional code."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from trainer.config.schema import DiscriminatorConfig, GeneratorConfig
from trainer.models import build_discriminator, build_generator
from trainer.networks.discriminators import VGGDiscriminator, cached_spectral_weights
from trainer.networks.fold_batch_norm import fold_batch_norm
from trainer.networks.rrdb import RRDBNet, to_pixelshuffle


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def generator_on_meta(scale: int = 4, **settings) -> RRDBNet:
    with torch.device("meta"):
        return build_generator(GeneratorConfig(**settings), scale=scale)


def small_generator(**settings) -> RRDBNet:
    """In float64, its batch statistics and biases away from where they start."""
    sizes = {"features": 6, "blocks": 2, "growth": 4} | settings
    module = RRDBNet(**sizes).double()
    for name, value in module.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_()
        elif name.endswith("running_var") or (".norm" in name and name.endswith("weight")):
            value.uniform_(0.5, 2)
        elif ".conv" in name:
            value.mul_(10)  # so that the residual branches count
    return module.eval()


# the generator


def test_esrgans_generator_has_its_published_number_of_parameters():
    assert count(generator_on_meta(upsampler="nearest_conv", norm="none")) == 16_697_987


def test_the_papers_generator_adds_pixel_shuffle_and_batch_norm_and_nothing_else():
    shuffle = 2 * 3 * (64 * 64 * 9 + 64)  # two layers with four times the outputs
    norm = 23 * 3 * 2 * (4 * 32 + 64)  # a gain and a bias for each output of a dense convolution
    assert count(generator_on_meta()) == 16_697_987 + shuffle + norm == 16_946_051


def test_key_names_are_basicsrs():
    layers = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    layers += [
        f"body.{n}.rdb{m}.conv{k}" for n in range(23) for m in (1, 2, 3) for k in (1, 2, 3, 4, 5)
    ]
    wanted = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert generator_on_meta(norm="none").state_dict().keys() == wanted
    assert generator_on_meta(upsampler="nearest_conv", norm="none").state_dict().keys() == wanted


def reference_rrdbnet(weights, lr, *, factors, upsampler):
    """RRDBNet after the ESRGAN paper (figures 3 and 4) with no module of ours."""

    def conv(x, name):
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        norm = name[:-1].removesuffix("conv") + f"norm{name[-1]}"
        if f"{norm}.weight" in weights:
            mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
            x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            x = (
                x * weights[f"{norm}.weight"][:, None, None]
                + weights[f"{norm}.bias"][:, None, None]
            )
        return x

    def lrelu(x):
        return torch.where(x > 0, x, 0.2 * x)

    first = conv(lr, "conv_first")
    trunk = first
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body"))
    for block in range(blocks):
        inner = trunk
        for dense in (1, 2, 3):
            name = f"body.{block}.rdb{dense}.conv"
            seen = [inner]
            for k in (1, 2, 3, 4):
                seen.append(lrelu(conv(torch.cat(seen, 1), f"{name}{k}")))
            inner = inner + 0.2 * conv(torch.cat(seen, 1), f"{name}5")
        trunk = trunk + 0.2 * inner
    x = first + conv(trunk, "conv_body")
    for number, factor in enumerate(factors, start=1):
        if upsampler == "pixelshuffle":
            x = conv(x, f"conv_up{number}")
            b, c, h, w = x.shape
            x = x.view(b, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
            x = x.reshape(b, c // factor**2, h * factor, w * factor)
        else:
            x = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            x = conv(x, f"conv_up{number}")
        x = lrelu(x)
    return conv(lrelu(conv(x, "conv_hr")), "conv_last")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "nearest_conv"])
def test_the_generator_computes_what_the_figures_of_esrgan_show(upsampler, norm):
    module = small_generator(upsampler=upsampler, norm=norm)
    lr = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    wanted = reference_rrdbnet(module.state_dict(), lr, factors=(2, 2), upsampler=upsampler)
    torch.testing.assert_close(module(lr), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "factors"), [(2, (2,)), (3, (3,)), (4, (2, 2)), (8, (2, 2, 2))])
def test_nearest_conv_weights_convert_to_pixelshuffle_of_the_same_function(scale, factors):
    old = small_generator(scale=scale, upsampler="nearest_conv")
    new = small_generator(scale=scale, upsampler="pixelshuffle")
    new.load_state_dict(to_pixelshuffle(old.state_dict(), scale=scale))
    lr = torch.rand(2, 3, 6, 9, dtype=torch.float64)
    wanted = reference_rrdbnet(old.state_dict(), lr, factors=factors, upsampler="nearest_conv")
    assert wanted.shape == (2, 3, 6 * scale, 9 * scale)
    torch.testing.assert_close(new(lr), wanted, rtol=1e-12, atol=1e-12)


def test_conversion_leaves_its_input_alone():
    old = small_generator(upsampler="nearest_conv").state_dict()
    before = {name: value.clone() for name, value in old.items()}
    to_pixelshuffle(old, scale=4)
    assert all(torch.equal(old[name], before[name]) for name in before)


def test_batch_norm_learns_statistics_in_training_and_uses_them_in_evaluation():
    module = RRDBNet(features=6, blocks=1, growth=4, norm="batch")
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [4, 4, 4, 4, 6] * 3
    lr = torch.rand(4, 3, 8, 8)
    module.train()(lr)
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)
    alone, together = module.eval()(lr[:1]), module(lr)[:1]
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_batch_norm_folds_into_its_convolution():
    normed, plain = small_generator(norm="batch"), small_generator(norm="none")
    plain.load_state_dict(fold_batch_norm(normed.state_dict()))
    lr = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(lr), normed(lr), rtol=1e-11, atol=1e-11)


def test_weights_without_batch_norm_fold_into_themselves():
    weights = small_generator(norm="none").state_dict()
    folded = fold_batch_norm(weights)
    assert folded.keys() == weights.keys()
    assert all(torch.equal(folded[name], value) for name, value in weights.items())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_fresh_pixel_shuffle_starts_without_checkerboard(scale):
    module = RRDBNet(scale=scale, features=6, blocks=1, growth=4)
    factor = 3 if scale == 3 else 2
    image = module.conv_up1(torch.rand(1, 6, 1, 1).expand(1, 6, 5, 5))
    cells = image[..., factor : 2 * factor, factor : 2 * factor]
    assert cells.std((-1, -2)).max() < 1e-6
    assert cells.std() > 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "nearest_conv"])
def test_a_fresh_generator_is_an_enlargement_with_a_little_noise(upsampler, norm, scale):
    module = RRDBNet(scale=scale, features=16, blocks=2, growth=8, upsampler=upsampler, norm=norm)
    lr = torch.rand(2, 3, 16, 16)
    sr = module.train()(lr)
    wanted = lr.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert (sr - wanted).abs().mean() < 0.15  # of a grey picture: 0.25
    for colour in range(3):
        likeness = [
            torch.corrcoef(torch.stack((sr[:, colour].flatten(), wanted[:, other].flatten())))[0, 1]
            for other in range(3)
        ]
        assert likeness[colour] > 0.8
        assert max(likeness) == likeness[colour]


# the discriminator


def small_discriminator() -> VGGDiscriminator:
    return VGGDiscriminator(features=4, dense=8)


def layers_of(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear)]


def test_the_discriminator_is_esrgans_without_its_batch_norm():
    module = build_discriminator(DiscriminatorConfig())
    batch_norm = 2 * (64 + 2 * 128 + 2 * 256 + 4 * 512)
    assert count(module) == 14_502_281 - batch_norm
    widths = [each.out_channels for each in module.modules() if isinstance(each, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]


@pytest.mark.parametrize("size", [32, 48, 64, 100, 128])
def test_the_discriminator_takes_patches_from_32_to_128(size):
    logits = small_discriminator()(torch.rand(3, 3, size, size))
    assert logits.shape == (3,)
    assert logits.isfinite().all()
    assert logits.unique().numel() == 3


def test_every_layer_of_the_discriminator_has_largest_singular_value_one():
    module = small_discriminator()
    layers = layers_of(module)
    assert len(layers) == 12
    for layer in layers:
        assert parametrize.is_parametrized(layer, "weight"), layer
        layer.parametrizations.weight.original.data.mul_(3)
    for _ in range(300):
        for layer in layers:
            _ = layer.weight  # in training mode each use is one power iteration
    for layer in layers:
        largest = torch.linalg.svdvals(layer.weight.flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.01), layer


def test_only_the_directions_of_raw_weights_count():
    module = small_discriminator().eval()
    images = torch.rand(2, 3, 32, 32)
    before = module(images)
    for layer in layers_of(module):
        layer.parametrizations.weight.original.data.mul_(3)
    torch.testing.assert_close(module(images), before, rtol=1e-4, atol=1e-6)


def vectors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def test_cached_weights_are_one_power_iteration_for_all_passes_in_training():
    module, other = small_discriminator(), small_discriminator()
    other.load_state_dict(module.state_dict())
    images = torch.rand(2, 3, 32, 32)
    before = vectors(module)
    with cached_spectral_weights(module):
        module(images)
        module(images)
    other(images)
    after, once = vectors(module), vectors(other)
    assert len(after) == 24
    assert all(torch.equal(after[name], once[name]) for name in after)
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_singular_vectors_stand_still_in_evaluation():
    module = small_discriminator().eval()
    before = vectors(module)
    with cached_spectral_weights(module):
        module(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in vectors(module).items())


def test_cached_weights_are_computed_in_float32_under_autocast():
    module, other = small_discriminator(), small_discriminator()
    other.load_state_dict(module.state_dict())
    with torch.autocast("cpu", torch.bfloat16), cached_spectral_weights(module):
        weights = [layer.weight for layer in layers_of(module)]
    for weight, layer in zip(weights, layers_of(other), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, layer.weight)
