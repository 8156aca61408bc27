from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from shards.errors import DamagedData, UsageError
from trainer.models import GeneratorConfig, build_generator
from trainer.weights import load_generator, load_matching, load_tensors, save_tensors

CPU = torch.device("cpu")
SMALL = GeneratorConfig(features=8, blocks=2, growth=4, norm="none")


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
    assert torch.equal(loaded.module(lr), net(lr))


def test_every_flipped_byte_of_the_content_is_noticed(tmp_path):
    path = tmp_path / "net.safetensors"
    save_tensors(path, build_generator(SMALL, scale=4).state_dict(), {})
    whole = path.read_bytes()
    for at in range(9, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[at] ^= 16
        path.write_bytes(damaged)
        with pytest.raises((DamagedData, UsageError)):
            load_generator(path, device=CPU)


def test_foreign_esrgan_weights_without_digest_are_taken(tmp_path):
    net = build_generator(
        GeneratorConfig(features=8, blocks=2, growth=4, upsampler="nearest_conv", norm="none"),
        scale=4,
    )
    save_file(net.state_dict(), tmp_path / "esrgan.safetensors")
    assert load_generator(tmp_path / "esrgan.safetensors", device=CPU).scale == 4
    taken = load_matching(tmp_path / "esrgan.safetensors", SMALL, scale=4)
    ours = build_generator(SMALL, scale=4)
    ours.load_state_dict(taken)
    lr = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(ours(lr), net(lr), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "scale", "words"),
    [({"features": 16}, 4, "features 8"), ({"norm": "batch"}, 4, "norm none"), ({}, 2, "scale 4")],
)
def test_weights_of_another_architecture_are_refused(tmp_path, changes, scale, words):
    path = tmp_path / "net.safetensors"
    save_tensors(path, build_generator(SMALL, scale=4).state_dict(), {})
    fields = {"features": 8, "blocks": 2, "growth": 4, "norm": "none", **changes}
    with pytest.raises(UsageError, match=words):
        load_matching(path, GeneratorConfig(**fields), scale=scale)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.safetensors", None, "there is no such file"),
        ("model.pth", b"PK\x03\x04", "is no .safetensors file"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "is damaged"),
        ("empty.safetensors", b"", "is damaged"),
        ("text.safetensors", b"hello, this is text", "is damaged"),
    ],
)
def test_what_is_no_weight_file_is_one_line_that_names_it(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((UsageError, DamagedData)) as caught:
        load_tensors(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_tensors_are_not_a_generator(tmp_path):
    save_tensors(tmp_path / "vgg.safetensors", {"features.0.weight": torch.zeros(1)}, {})
    with pytest.raises(UsageError, match="holds no RRDBNet weights"):
        load_generator(tmp_path / "vgg.safetensors", device=CPU)


def test_the_same_weights_give_the_same_file(tmp_path):
    tensors = build_generator(SMALL, scale=4).state_dict()
    for name in ("a", "b"):
        save_tensors(tmp_path / f"{name}.safetensors", tensors, {"x": "1", "y": "2"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
