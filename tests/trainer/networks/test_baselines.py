"""SRCNN and SRResNet against plain functional code, and the road of each from weights to a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import UsageError
from shards.images import resize
from tests.trainer.support import train
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.networks.fold_batch_norm import fold_batch_norm
from trainer.networks.srcnn import SRCNN
from trainer.networks.srresnet import SRResNet
from trainer.upscaling.tiling import upscale_tiled
from trainer.weights.generators import load_generator, load_initial_weights
from trainer.weights.safetensors_io import save_tensors

CPU = torch.device("cpu")
SMALL = {
    "srcnn": GeneratorConfig(architecture="srcnn", features=8),
    "srresnet": GeneratorConfig(architecture="srresnet", features=8, blocks=2, norm="batch"),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stirred(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, away from where everything starts."""
    module.double()
    for name, value in module.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.3)
        elif name.endswith("running_var") or "norm" in name or "act" in name:
            value.uniform_(0.5, 2) if value.is_floating_point() else None
    return module.eval()


# sizes


def test_srcnn_has_the_weights_of_9_5_5():
    with torch.device("meta"):
        module = build_generator(GeneratorConfig(architecture="srcnn"), scale=4)
    kernels = [tuple(value.shape) for value in module.state_dict().values() if value.ndim == 4]
    assert kernels == [(64, 3, 9, 9), (32, 64, 5, 5), (3, 32, 5, 5)]
    assert count(module) == 3 * 81 * 64 + 64 * 25 * 32 + 32 * 25 * 3 + 64 + 32 + 3


def test_srresnet_has_the_weights_of_figure_4_of_its_paper():
    with torch.device("meta"):
        module = build_generator(GeneratorConfig(architecture="srresnet", blocks=16), scale=4)
    conv, norm = 64 * 64 * 9 + 64, 2 * 64
    ends = 3 * 81 * 64 + 64 + 64 * 81 * 3 + 3
    trunk = 16 * (2 * conv + 2 * norm + 1) + conv + norm
    ups = 2 * (64 * 256 * 9 + 256 + 1)
    assert count(module) == ends + 1 + trunk + ups == 1_549_462


# what they compute


def test_srcnn_is_three_convolutions_of_the_bicubic_enlargement():
    module = stirred(SRCNN(features=8))
    lr = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    size = (24, 20)
    x = F.interpolate(lr, size=size, mode="bicubic", antialias=True)
    for number, pad in ((1, 4), (2, 2), (3, 2)):
        weight, bias = (module.get_parameter(f"conv{number}.{part}") for part in ("weight", "bias"))
        x = F.conv2d(F.pad(x, (pad,) * 4, mode="replicate"), weight, bias)
        x = x.clamp(min=0) if number < 3 else x
    torch.testing.assert_close(module(lr), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_fresh_srcnn_starts_from_the_bicubic_of_the_tables(scale):
    """Cubic with a = -0.5: on values that no overshoot clips, `shards.images.resize` differs by its rounding."""
    module = SRCNN(scale=scale, features=8)
    for conv in (module.conv1, module.conv2, module.conv3):
        noise = conv.weight.detach()
        noise[noise.abs() < 0.5] = 0
        noise[noise.abs() >= 0.5] = 1
    low = np.random.default_rng(1).integers(80, 176, (9, 7, 3), dtype=np.uint8)
    lr = torch.from_numpy(low).permute(2, 0, 1)[None] / 255
    sr = (module(lr)[0].clamp(0, 1) * 255).permute(1, 2, 0).detach().numpy()
    apart = np.abs(sr - resize.upscale(low, scale=scale))
    assert apart.max() < 1.6  # PIL rounds after each axis
    assert apart.mean() < 0.4


def reference_srresnet(weights, lr, *, factors):
    def conv(x, name):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x, name):
        mean, variance, gain, shift = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift

    def prelu(x, name):
        return torch.where(x > 0, x, weights[f"{name}.weight"] * x)

    first = trunk = prelu(conv(lr, "conv_first"), "act_first")
    for block in range(1 + max(int(n.split(".")[1]) for n in weights if n.startswith("body"))):
        name = f"body.{block}"
        inner = prelu(norm(conv(trunk, f"{name}.conv1"), f"{name}.norm1"), f"{name}.act")
        trunk = trunk + norm(conv(inner, f"{name}.conv2"), f"{name}.norm2")
    x = first + norm(conv(trunk, "conv_body"), "norm_body")
    for number, factor in enumerate(factors, start=1):
        x = conv(x, f"conv_up{number}")
        b, c, h, w = x.shape
        x = x.view(b, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
        x = prelu(x.reshape(b, c // factor**2, h * factor, w * factor), f"act_up{number}")
    return conv(x, "conv_last")


@pytest.mark.parametrize(("scale", "factors"), [(2, (2,)), (3, (3,)), (4, (2, 2)), (8, (2, 2, 2))])
def test_srresnet_computes_what_its_figure_shows(scale, factors):
    module = stirred(SRResNet(scale=scale, features=6, blocks=2))
    lr = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    wanted = reference_srresnet(module.state_dict(), lr, factors=factors)
    assert wanted.shape == (2, 3, 7 * scale, 5 * scale)
    torch.testing.assert_close(module(lr), wanted, rtol=1e-12, atol=1e-12)


def test_srresnets_batch_norm_folds_too():
    normed = stirred(SRResNet(features=6, blocks=2))
    plain = SRResNet(features=6, blocks=2, norm="none").double().eval()
    plain.load_state_dict(fold_batch_norm(normed.state_dict()))
    lr = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(lr), normed(lr), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("architecture", ["srcnn", "srresnet"])
def test_a_fresh_one_is_an_enlargement_with_a_little_noise(architecture, norm):
    config = GeneratorConfig(architecture=architecture, features=16, blocks=4, norm=norm)
    module = build_generator(config, scale=4)
    lr = F.interpolate(torch.rand(2, 3, 4, 4), size=16, mode="bicubic").clamp(0, 1)
    sr = module.train()(lr)
    wanted = F.interpolate(lr, scale_factor=4, mode="nearest")
    assert (sr - wanted).abs().mean() < 0.15


# the road to a picture


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("architecture", ["srcnn", "srresnet"])
def test_weights_tell_what_they_are_and_load(tmp_path, architecture, scale):
    config = SMALL[architecture]
    net = stirred(build_generator(config, scale=scale)).float()
    path = tmp_path / "net.safetensors"
    save_tensors(path, net.state_dict(), {"scale": str(scale)})
    loaded = load_generator(path, device=CPU)
    lr = torch.rand(1, 3, 9, 8)
    assert loaded.scale == scale
    torch.testing.assert_close(loaded.module(lr), net(lr), rtol=1e-4, atol=1e-5)
    taken = load_initial_weights(path, config, scale=scale)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in taken.items())
    other = GeneratorConfig(architecture="rrdbnet", features=8, blocks=2)
    with pytest.raises(UsageError, match=f"architecture {architecture}, the configuration has"):
        load_initial_weights(path, other, scale=scale)


def test_an_srcnn_without_a_scale_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_tensors(path, build_generator(SMALL["srcnn"], scale=4).state_dict(), {})
    with pytest.raises(UsageError, match="without a scale in its metadata"):
        load_generator(path, device=CPU)


def test_a_damaged_set_of_names_is_refused_under_its_own_title(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = build_generator(SMALL["srresnet"], scale=4).state_dict()
    del tensors["act_first.weight"]
    save_tensors(path, tensors, {"scale": "4"})
    with pytest.raises(UsageError, match=r"does not fit an SRResNet at act_first\.weight"):
        load_generator(path, device=CPU)


@pytest.mark.parametrize("architecture", ["srcnn", "srresnet"])
def test_tiles_equal_one_pass(architecture):
    """The default overlap is wider than these networks look."""
    module = build_generator(SMALL[architecture], scale=4).eval()
    picture = np.random.default_rng(2).integers(0, 256, (70, 61, 3), dtype=np.uint8)
    both = [
        upscale_tiled(module, picture, scale=4, tile=tile, overlap=overlap, device=CPU)
        for tile, overlap in ((512, 32), (48, 12))
    ]
    middle = np.s_[40:-40, 40:-40]
    assert np.abs(both[0][middle].astype(int) - both[1][middle]).max() <= 1


@pytest.mark.parametrize("architecture", ["srcnn", "srresnet"])
def test_both_stages_train_it_and_what_they_hand_on_upscales(tiny_shards, tmp_path, architecture):
    settings = (
        f"generator.architecture={architecture}",
        "discriminator.architecture=patch",
        "epochs=1",
    )
    more = [part for setting in settings for part in ("--set", setting)]
    result = json.loads(train(tiny_shards, tmp_path / "run", *more, "--json").stdout)
    loaded = load_generator(Path(result["weights"]), device=CPU)
    assert (
        loaded.metadata["architecture"] == loaded.metadata["generator.architecture"] == architecture
    )
    picture = np.full((20, 17, 3), 128, np.uint8)
    large = upscale_tiled(loaded.module, picture, scale=4, tile=64, overlap=8, device=CPU)
    assert large.shape == (80, 68, 3)
    assert abs(large[20:-20, 20:-20].mean() - 128) < 40
