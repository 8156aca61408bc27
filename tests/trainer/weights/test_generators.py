"""Generators from files, blends of two, and initial weights of a stage."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from shards.errors import UsageError
from tests.trainer.weights.support import CPU, SMALL, save_small
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.generators import load_blend, load_generator, load_initial_weights
from trainer.weights.safetensors_io import save_tensors


def test_foreign_esrgan_weights_without_digest_are_taken(tmp_path):
    net = build_generator(
        GeneratorConfig(features=8, blocks=2, growth=4, upsampler="nearest_conv", norm="none"),
        scale=4,
    )
    save_file(net.state_dict(), tmp_path / "esrgan.safetensors")
    assert load_generator(tmp_path / "esrgan.safetensors", device=CPU).scale == 4
    taken = load_initial_weights(tmp_path / "esrgan.safetensors", SMALL, scale=4)
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
        load_initial_weights(path, GeneratorConfig(**fields), scale=scale)


def test_a_loaded_generator_is_ready_to_upscale(tmp_path):
    path = tmp_path / "mine.safetensors"
    tensors = {name: value.half() for name, value in save_small(path).items()}
    save_tensors(path, tensors, {"stage": "gan"})
    loaded = load_generator(path, device=CPU)
    assert loaded.name == "mine"
    assert loaded.metadata["stage"] == "gan"
    assert not loaded.module.training
    for name, value in loaded.module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[name].float()), name
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_matching_weights_come_as_they_are(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = save_small(path)
    taken = load_initial_weights(path, SMALL, scale=4)
    assert taken.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in taken.items())


def two_stages(tmp_path, **changes):
    """Files of a batch-normalised stage psnr and of a stage gan near it."""
    config = GeneratorConfig(features=8, blocks=1, growth=4, norm="batch")
    nets = [build_generator(config, scale=4) for _ in range(2)]
    nets[0].train()(torch.rand(4, 3, 8, 8))
    nets[1].load_state_dict(nets[0].state_dict())
    for value in nets[1].parameters():
        value.data.add_(torch.randn_like(value), alpha=0.01)
    paths = [tmp_path / f"{stage}.safetensors" for stage in ("psnr", "gan")]
    for net, path in zip(nets, paths, strict=True):
        save_tensors(path, net.eval().state_dict(), {"scale": "4", "stage": path.stem})
    return nets, paths


def test_a_blend_begins_at_the_first_and_ends_at_the_second(tmp_path):
    nets, paths = two_stages(tmp_path)
    lr = torch.rand(1, 3, 9, 8)
    for alpha, net in ((0.0, nets[0]), (1.0, nets[1])):
        blend = load_blend(*paths, alpha=alpha, device=CPU)
        torch.testing.assert_close(blend.module(lr), net(lr), rtol=1e-4, atol=1e-5)
    half = load_blend(*paths, alpha=0.5, device=CPU)
    assert half.metadata["blend"] == "0.5 psnr + 0.5 gan"
    ends = [load_generator(path, device=CPU).module.state_dict() for path in paths]
    for name, value in half.module.state_dict().items():
        torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)
    far = [(half.module(lr) - net(lr)).norm() for net in nets]
    assert max(far) < (nets[0](lr) - nets[1](lr)).norm()


def test_a_blend_of_two_networks_is_refused(tmp_path):
    _, (first, _) = two_stages(tmp_path)
    other = tmp_path / "other.safetensors"
    save_small(other)
    with pytest.raises(UsageError, match=r"has blocks 2, that of .*psnr.safetensors has 1"):
        load_blend(first, other, alpha=0.5, device=CPU)
