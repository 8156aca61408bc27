"""VGG-19 features against torchvision's layout and plain functional code; where weights come from."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.trainer.losses.support import LAYOUT, refusal, torchvision_weights
from trainer.config.schema import ContentConfig
from trainer.losses.content import (
    build_content_features,
    parse_layers,
    smallest_content_patch,
)
from trainer.networks.feature_extractors import VGGFeatures, layer_names

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reference_features(weights, image, layer, *, activation, input_range):
    x = image
    if input_range == "imagenet":
        x = torch.stack([(x[:, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)], 1)
    for name, (number, _, _) in LAYOUT.items():
        if name != "conv1_1":
            x = x.clamp(min=0)
            if name.endswith("_1"):
                b, c, h, w = x.shape
                x = (
                    x[..., : h // 2 * 2, : w // 2 * 2]
                    .reshape(b, c, h // 2, 2, w // 2, 2)
                    .amax((3, 5))
                )
        x = F.conv2d(
            x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1
        )
        if name == layer:
            break
    return x.clamp(min=0) if activation == "after" else x


def test_the_layers_are_those_of_vgg_19():
    assert layer_names() == list(LAYOUT)
    assert len(layer_names()) == 16
    assert LAYOUT["conv5_4"] == (34, 512, 512)  # where ESRGAN taps


def test_keys_and_shapes_are_torchvisions():
    with torch.device("meta"):
        network = VGGFeatures(layers=["conv5_4"], activation="after", input_range="imagenet")
    wanted = {}
    for number, inputs, outputs in LAYOUT.values():
        wanted[f"features.{number}.weight"] = (outputs, inputs, 3, 3)
        wanted[f"features.{number}.bias"] = (outputs,)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == wanted
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 20_024_384  # the convolutions of the published network


@pytest.mark.parametrize(
    ("layer", "activation", "input_range"),
    [
        ("conv1_1", "before", "unit"),
        ("conv1_2", "after", "imagenet"),
        ("conv2_2", "before", "imagenet"),
        ("conv3_4", "after", "unit"),
        ("conv5_4", "before", "imagenet"),
        ("conv5_4", "after", "imagenet"),
    ],
)
def test_the_tapped_layer_is_what_plain_code_computes(layer, activation, input_range, tmp_path):
    stored = torchvision_weights(layer)
    torch.save(stored, tmp_path / "vgg19.pth")
    config = ContentConfig(layer=layer, activation=activation, input_range=input_range)
    network = build_content_features(config, weights=tmp_path / "vgg19.pth")
    image = torch.rand(2, 3, 32, 32)
    wanted = reference_features(
        stored, image, layer, activation=activation, input_range=input_range
    )
    (found,) = network(image)
    assert found.std() > 0.05
    assert (found.min() >= 0) == (activation == "after")
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ["before", "after"])
def test_several_layers_come_from_one_pass_in_the_order_they_are_named(activation, tmp_path):
    stored = torchvision_weights("conv3_1")
    torch.save(stored, tmp_path / "vgg19.pth")
    config = ContentConfig(layer="conv3_1 + 0.5*conv1_2 + conv1_1", activation=activation)
    network = build_content_features(config, weights=tmp_path / "vgg19.pth")
    image = torch.rand(2, 3, 16, 16)
    found = network(image)
    for maps, layer in zip(found, ("conv3_1", "conv1_2", "conv1_1"), strict=True):
        wanted = reference_features(
            stored, image, layer, activation=activation, input_range="imagenet"
        )
        torch.testing.assert_close(maps, wanted, rtol=1e-3, atol=1e-4)


def test_a_sum_of_layers_is_read_with_its_weights():
    assert parse_layers("conv5_4") == {"conv5_4": 1.0}
    assert parse_layers(" .1 * conv1_2+conv3_4 + 2e-1*conv5_4 ") == {
        "conv1_2": 0.1, "conv3_4": 1.0, "conv5_4": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("conv1_2 + relu5_4", "VGG-19 has no 'relu5_4'"),
        ("conv1_2 conv5_4", "VGG-19 has no 'conv1_2 conv5_4'"),
        ("conv1_2 + conv1_2", "conv1_2 is named twice"),
        ("0*conv1_2", "conv1_2 has no weight above 0 (0)"),
        ("1.2.3*conv1_2", "conv1_2 has no weight above 0 (1.2.3)"),
        ("-1*conv1_2", "conv1_2 has no weight above 0 (-1)"),
        ("", "VGG-19 has no ''"),
    ],
)
def test_what_is_no_sum_of_layers_is_refused(layer, words):
    message = refusal(ContentConfig(features="random", layer=layer), None)
    assert message.startswith("content.layer: ")
    assert words in message


def test_weights_are_taken_from_safetensors_too(tmp_path):
    stored = torchvision_weights("conv1_2")
    save_file(stored, tmp_path / "vgg19.safetensors")
    config = ContentConfig(layer="conv1_2")
    network = build_content_features(config, weights=tmp_path / "vgg19.safetensors")
    assert torch.equal(network.features[2].weight, stored["features.2.weight"])


@pytest.mark.parametrize("features", ["random", "vgg19"])
def test_the_network_is_frozen_and_lets_gradients_through(features, tmp_path):
    torch.save(torchvision_weights("conv2_1"), tmp_path / "vgg19.pth")
    config = ContentConfig(features=features, layer="conv2_1")
    network = build_content_features(config, weights=tmp_path / "vgg19.pth")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    network(image)[0].square().mean().backward()
    assert (image.grad != 0).float().mean() > 0.9


def test_random_features_are_the_same_every_time_and_draw_nothing_from_the_process():
    config = ContentConfig(features="random", layer="conv2_2")
    before = torch.get_rng_state()
    one = build_content_features(config, weights=None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    other = build_content_features(config, weights=None)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_random_features_neither_vanish_nor_explode_up_to_the_last_layer():
    config = ContentConfig(features="random", layer="conv5_4")
    (found,) = build_content_features(config, weights=None)(torch.rand(1, 3, 32, 32))
    assert 0.1 < found.std() < 10


def test_an_unknown_layer_is_refused_with_the_ones_there_are():
    message = refusal(ContentConfig(features="random", layer="relu5_4"), None)
    assert "content.layer: VGG-19 has no 'relu5_4'" in message
    assert "conv5_4" in message


@pytest.mark.parametrize(
    ("layer", "least"), [("conv1_2", 1), ("conv3_1 + conv1_1", 4), ("conv5_4", 16)]
)
def test_the_smallest_patch_is_seen_and_a_smaller_one_cannot_be(layer, least):
    assert smallest_content_patch(layer) == least
    network = build_content_features(ContentConfig("random", layer), weights=None)
    assert network(torch.rand(1, 3, least, least))[0].shape[-2:] == (1, 1)
    if least > 1:
        with pytest.raises(RuntimeError, match=r"[Oo]utput size"):
            network(torch.rand(1, 3, least - 1, least - 1))
