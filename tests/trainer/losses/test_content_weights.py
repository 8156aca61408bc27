"""VGG-19 weights: accepted files, refused files, download."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import re
import urllib.error

import pytest
import torch
from safetensors.torch import save_file

from tests.trainer.losses.support import refusal, torchvision_weights
from trainer.config.schema import ContentConfig
from trainer.losses import content
from trainer.losses.content import (
    build_content_features,
    unverified_weights_warning,
)


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
    assert "has no state dict" in refusal(ContentConfig(), tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "is not a readable PyTorch file" in refusal(ContentConfig(), tmp_path / "text.pth")


def test_a_file_of_another_digest_than_its_name_says_is_refused(tmp_path):
    torch.save(torchvision_weights("conv2_2"), tmp_path / "vgg19-dcbb9e9d.pth")
    message = refusal(ContentConfig(layer="conv2_2"), tmp_path / "vgg19-dcbb9e9d.pth")
    assert "vgg19-dcbb9e9d.pth: is damaged (its SHA-256 begins with" in message
    assert "not dcbb9e9d); download it again, or use torchvision's" in message


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


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torch.hub's copy of a published file; it would be fetched from `served.pth` beside it."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(torchvision_weights("conv1_2"), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    path = (folder / "new.pth").rename(folder / f"vgg19-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(content, "PUBLISHED_FILE", path.name)
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
    assert "remove it to download it again" in message
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
    assert message.endswith("; use torchvision's vgg19-dcbb9e9d.pth")
