from __future__ import annotations

import json
import math
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shards.errors import DamagedData, UsageError
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.generators import load_blend, load_generator, load_initial_weights
from trainer.weights.safetensors_io import DIGEST, load_tensors, save_tensors

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
    torch.testing.assert_close(loaded.module(lr), net(lr))  # batch norm is folded
    assert not any("norm" in name for name in loaded.module.state_dict())


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


def test_a_checkpoint_to_go_on_from_is_told_from_weights(tmp_path):
    path = tmp_path / "gan-000000000032.safetensors"
    state = build_generator(SMALL, scale=4).state_dict()
    save_tensors(path, {f"generator.{name}": value for name, value in state.items()}, {})
    with pytest.raises(UsageError, match="use its weights, RUN/checkpoints/final/STAGE"):
        load_generator(path, device=CPU)


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


def save_small(path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A small generator's file; `conv_hr__bias=None` takes a tensor away."""
    tensors = build_generator(SMALL, scale=4).state_dict()
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_tensors(path, tensors, {"preset": "test"})
    return tensors


def test_every_type_comes_back_bit_for_bit(tmp_path):
    nan_with_payload = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    tensors = {
        "half": torch.randn(3, 2).half(),
        "bf16": torch.randn(5).bfloat16(),
        "float": torch.cat((torch.randn(4), nan_with_payload, torch.tensor([-0.0, torch.inf]))),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "count": torch.tensor(7),
        "bytes": torch.randint(0, 256, (9,), dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": torch.randn(8, 8)[::2, 1:3],
        "grad": torch.nn.Parameter(torch.randn(3)),
    }
    save_tensors(tmp_path / "all.safetensors", tensors, {"what": 'ünïcode "quoted"\n'})
    found, metadata = load_tensors(tmp_path / "all.safetensors")
    assert metadata.pop(DIGEST)
    assert metadata == {"what": 'ünïcode "quoted"\n'}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        bits = [
            each.detach().contiguous().flatten().view(torch.uint8) for each in (found[name], value)
        ]
        assert torch.equal(*bits), name


def test_the_library_reads_our_files_and_tensors_lie_aligned(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = save_small(path)
    with safe_open(path, "pt") as opened:
        assert set(opened.keys()) == tensors.keys()
        assert torch.equal(opened.get_tensor("conv_last.bias"), tensors["conv_last.bias"])
        assert opened.metadata()["preset"] == "test"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0


def test_no_flipped_bit_changes_a_value_unnoticed(tmp_path):
    path = tmp_path / "few.safetensors"
    save_tensors(
        path, {"a": torch.randn(4), "b": torch.arange(3)}, {"patches_seen": "96", "x": "y"}
    )
    whole = path.read_bytes()
    wanted, metadata = load_tensors(path)
    refusals, taken = [], 0
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, described = load_tensors(path)
        except DamagedData as error:
            refusals.append(str(error))
            continue
        taken += 1
        # only the name of the digest itself may be hit: then nothing else is
        assert DIGEST not in described or described == metadata
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert described["patches_seen"] == "96"
        assert described["x"] == "y"
    assert taken <= 8 * len(DIGEST)
    assert all(message.startswith(f"{path}: is damaged (") for message in refusals)
    assert not any("\n" in message for message in refusals)


@pytest.mark.parametrize("header", [b"[]", b"7", b"null", b'{"__metadata__":[]}', b"{}x", b"\xff"])
def test_a_header_that_is_no_table_is_damage(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DamagedData, match="is damaged"):
        load_tensors(path)


def test_an_impossibly_long_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(DamagedData, match="impossibly long"):
        load_tensors(path)


def test_a_folder_is_no_weight_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_tensors(tmp_path)


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
            UsageError, match=r"bad\.safetensors: conv_hr\.bias holds values that are"
        ):
            read()


def test_names_with_a_wrappers_prefix_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = build_generator(SMALL, scale=4).state_dict()
    save_tensors(path, {f"module.{name}": value for name, value in tensors.items()}, {})
    with pytest.raises(UsageError, match="holds no RRDBNet weights"):
        load_generator(path, device=CPU)


def test_a_pickle_is_refused_whatever_it_is_called(tmp_path):
    state = build_generator(SMALL, scale=4).state_dict()
    for name, words in (("net.pth", "pickled weights"), ("net.safetensors", "is damaged")):
        torch.save(state, tmp_path / name)
        with pytest.raises((UsageError, DamagedData), match=words):
            load_generator(tmp_path / name, device=CPU)


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


def test_the_digest_covers_the_metadata(tmp_path):
    path = tmp_path / "net.safetensors"
    save_small(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["preset"] == "test"
    path.write_bytes(content.replace(b'"preset":"test"', b'"preset":"best"'))
    with pytest.raises(DamagedData, match="digest"):
        load_tensors(path)


# between two generators


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
