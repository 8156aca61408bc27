"""Architecture and scale of a state dict; files that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from shards.errors import UsageError
from tests.trainer.weights.support import CPU, SMALL, save_small
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.generators import load_blend, load_generator, load_initial_weights
from trainer.weights.safetensors_io import save_tensors


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "nearest_conv"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_generator_is_recognised_by_its_weights(tmp_path, scale, upsampler, norm):
    config = GeneratorConfig(features=8, blocks=2, growth=4, upsampler=upsampler, norm=norm)
    net = build_generator(config, scale=scale).eval()
    path = tmp_path / "net.safetensors"
    save_tensors(path, net.state_dict(), {"preset": "test", "scale": str(scale)})
    loaded = load_generator(path, device=CPU)
    lr = torch.rand(1, 3, 8, 8)
    assert loaded.scale == scale
    assert loaded.metadata["preset"] == "test"
    torch.testing.assert_close(loaded.module(lr), net(lr))  # batch norm is folded
    assert not any("norm" in name for name in loaded.module.state_dict())


def test_a_checkpoint_to_go_on_from_is_told_from_weights(tmp_path):
    path = tmp_path / "gan-000000000032.safetensors"
    state = build_generator(SMALL, scale=4).state_dict()
    save_tensors(path, {f"generator.{name}": value for name, value in state.items()}, {})
    with pytest.raises(UsageError, match="use the weights RUN/checkpoints/final/STAGE"):
        load_generator(path, device=CPU)


def test_other_tensors_are_not_a_generator(tmp_path):
    save_tensors(tmp_path / "vgg.safetensors", {"features.0.weight": torch.zeros(1)}, {})
    with pytest.raises(UsageError, match="has no weights of an RRDBNet"):
        load_generator(tmp_path / "vgg.safetensors", device=CPU)


@pytest.mark.parametrize(
    ("changes", "odd"),
    [
        ({"conv_hr__bias": None}, "conv_hr.bias"),
        ({"conv_extra__bias": torch.zeros(1)}, "conv_extra.bias"),
        ({"conv_last__weight": torch.zeros(4, 8, 3, 3)}, "conv_last.weight"),
        ({"body__1__rdb2__conv3__weight": torch.zeros(4, 16, 1, 1)}, "body.1.rdb2.conv3.weight"),
    ],
)
def test_wrong_names_and_shapes_are_refused_by_name(tmp_path, changes, odd):
    path = tmp_path / "net.safetensors"
    save_small(path, **changes)
    with pytest.raises(UsageError) as refused:
        load_generator(path, device=CPU)
    assert str(refused.value).startswith(f"{path}: does not fit an RRDBNet at {odd};")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_wherever_they_are_read(tmp_path, value):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_small(good)
    save_small(bad, conv_hr__bias=torch.full((8,), value))
    for read in (
        lambda: load_generator(bad, device=CPU),
        lambda: load_blend(good, bad, alpha=0.5, device=CPU),
        lambda: load_initial_weights(bad, SMALL, scale=4),
    ):
        with pytest.raises(
            UsageError, match=r"bad\.safetensors: conv_hr\.bias has values that are"
        ):
            read()


def test_names_with_a_wrappers_prefix_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = build_generator(SMALL, scale=4).state_dict()
    save_tensors(path, {f"module.{name}": value for name, value in tensors.items()}, {})
    with pytest.raises(UsageError, match="has no weights of an RRDBNet"):
        load_generator(path, device=CPU)
