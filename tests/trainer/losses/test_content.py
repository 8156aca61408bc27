"""VGG-19 features against torchvision's layout and plain functional code; where weights come from."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import re
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from shards.errors import UsageError, UsrganError
from trainer.config.schema import ContentConfig
from trainer.losses import content
from trainer.losses.content import (
    build_content_features,
    parse_layers,
    smallest_content_patch,
    unverified_weights_warning,
)
from trainer.networks.feature_extractors import VGGFeatures, layer_names

# torchvision's `cfgs["E"]`: widths of convolutions, each with a ReLU behind it, M a pooling
CFG_E = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_layout() -> dict[str, tuple[int, int, int]]:
    """Name of each convolution => (number in `features`, inputs, outputs)."""
    found, number, inputs, level, place = {}, 0, 3, 1, 1
    for entry in CFG_E:
        if entry == "M":
            number, level, place = number + 1, level + 1, 1
        else:
            found[f"conv{level}_{place}"] = (number, inputs, entry)
            number, place, inputs = number + 2, place + 1, entry
    return found


LAYOUT = torchvision_layout()


def torchvision_weights(upto: str) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, with the classifier's that nobody asked for."""
    stored = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    for number, inputs, outputs in list(LAYOUT.values())[: list(LAYOUT).index(upto) + 1]:
        scale = (2 / (9 * inputs)) ** 0.5
        stored[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3) * scale
        stored[f"features.{number}.bias"] = torch.randn(outputs) * 0.1
    return stored


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


# mistakes


def refusal(config: ContentConfig, weights) -> str:
    with pytest.raises(UsrganError) as refused:
        build_content_features(config, weights=weights)
    assert isinstance(refused.value, UsageError)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_an_unknown_layer_is_refused_with_the_ones_there_are():
    message = refusal(ContentConfig(features="random", layer="relu5_4"), None)
    assert "content.layer: VGG-19 has no 'relu5_4'" in message
    assert "conv5_4" in message


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        message = refusal(ContentConfig(), tmp_path / name)
        assert name in message
        assert "no such file" in message


def test_a_network_of_other_names_is_refused_by_the_first_key_it_lacks(tmp_path):
    stored = torchvision_weights("conv2_2")
    del stored["features.7.weight"]
    torch.save(stored, tmp_path / "vgg16.pth")
    message = refusal(ContentConfig(layer="conv2_2"), tmp_path / "vgg16.pth")
    assert "vgg16.pth: has no features.7.weight" in message
    assert "--vgg" in message


def test_weights_of_another_shape_are_refused(tmp_path):
    stored = torchvision_weights("conv2_2")
    stored["features.5.weight"] = stored["features.5.weight"][:, :32]
    torch.save(stored, tmp_path / "narrow.pth")
    message = refusal(ContentConfig(layer="conv2_2"), tmp_path / "narrow.pth")
    assert "narrow.pth" in message
    assert "features.5.weight" in message


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds no state dict" in refusal(ContentConfig(), tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "is no PyTorch file" in refusal(ContentConfig(), tmp_path / "text.pth")


def test_a_file_of_another_digest_than_its_name_says_is_refused(tmp_path):
    torch.save(torchvision_weights("conv2_2"), tmp_path / "vgg19-dcbb9e9d.pth")
    message = refusal(ContentConfig(layer="conv2_2"), tmp_path / "vgg19-dcbb9e9d.pth")
    assert "vgg19-dcbb9e9d.pth: is damaged (its SHA-256 begins with" in message
    assert "not dcbb9e9d); download it again, or name torchvision's" in message


def test_a_pickle_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"features.0.weight": Trap()}))
    torch.save({"features.0.weight": Trap()}, tmp_path / "zip.pth")
    for name in ("trap.pth", "zip.pth"):
        assert name in refusal(ContentConfig(layer="conv1_1"), tmp_path / name)
        assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        RuntimeError("invalid hash value (expected dcbb9e9d, got 00)"),
        http.client.IncompleteRead(b""),
    ],
)
def test_a_failed_download_offers_the_file_and_random_features(error, monkeypatch, tmp_path):
    def failing(*_, hash_prefix):
        assert hash_prefix == "dcbb9e9d"
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(content.torch.hub, "download_url_to_file", failing)
    message = refusal(ContentConfig(), None)
    assert "--vgg FILE" in message
    assert "content.features=random" in message
    assert str(getattr(error, "reason", error)) in message


def test_the_url_carries_the_start_of_its_files_digest():
    assert re.fullmatch(r"https://\S+/vgg19-[0-9a-f]{8}\.pth", content.VGG19_URL)


# which file it was


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torch.hub's copy of a published file; it would be fetched from `served.pth` beside it."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(torchvision_weights("conv1_2"), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    path = (folder / "new.pth").rename(folder / f"vgg19-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(content, "PUBLISHED", path.name)
    monkeypatch.setattr(content, "_DIGEST", digest[:8])
    monkeypatch.setattr(content, "VGG19_URL", (folder / "served.pth").as_uri())
    return path


def test_a_file_that_was_fetched_before_is_taken_in_silence(published, capfd):
    network = build_content_features(ContentConfig(layer="conv1_2"), weights=None)
    assert network.digest == hashlib.sha256(published.read_bytes()).hexdigest()
    assert unverified_weights_warning(network) == ""
    assert capfd.readouterr() == ("", "")


def test_a_fetched_file_that_was_damaged_is_named_with_what_to_do(published):
    published.write_bytes(published.read_bytes()[:1000])
    message = refusal(ContentConfig(layer="conv1_2"), None)
    assert f"content.features {published}: is damaged" in message
    assert "remove it to have it fetched anew" in message
    assert "--vgg FILE" in message


def test_fetching_says_nothing_on_stdout(published, capfd):
    whole = published.read_bytes()
    published.rename(published.with_name("served.pth"))
    network = build_content_features(ContentConfig(layer="conv1_2"), weights=None)
    assert published.read_bytes() == whole
    assert unverified_weights_warning(network) == ""
    assert capfd.readouterr().out == ""


def test_weights_that_are_not_the_published_file_are_told(tmp_path, published):
    torch.save(torchvision_weights("conv1_2"), tmp_path / "vgg19.pth")
    save_file(torchvision_weights("conv1_2"), tmp_path / "vgg19.safetensors")
    config = ContentConfig(layer="conv1_2")
    for name in ("vgg19.pth", "vgg19.safetensors"):
        network = build_content_features(config, weights=tmp_path / name)
        assert (
            f"is not torchvision's {published.name} (its SHA-256 is"
            in unverified_weights_warning(network)
        )
        assert "\n" not in unverified_weights_warning(network)
    assert unverified_weights_warning(build_content_features(config, weights=published)) == ""
    random = ContentConfig(layer="conv1_2", features="random")
    assert unverified_weights_warning(build_content_features(random, weights=None)) == ""


@pytest.mark.parametrize("damaged", [b"cut", None])
def test_damaged_safetensors_are_a_wrong_option_like_any_other_file(tmp_path, damaged):
    path = tmp_path / "vgg19.safetensors"
    save_file(torchvision_weights("conv1_2"), path)
    path.write_bytes(damaged or path.read_bytes()[:-9])
    message = refusal(ContentConfig(layer="conv1_2"), path)
    assert message.startswith(f"--vgg {path}: is damaged (")
    assert message.endswith("; name torchvision's vgg19-dcbb9e9d.pth")


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
