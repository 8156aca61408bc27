"""Safetensors files: bit-exact, verified by digest, damage detected."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors import safe_open

from shards.errors import DamagedData, UsageError
from tests.trainer.weights.support import CPU, SMALL, save_small
from trainer.models import build_generator
from trainer.weights.generators import load_generator
from trainer.weights.safetensors_io import DIGEST, load_tensors, save_tensors


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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.safetensors", None, "no such file"),
        ("model.pth", b"PK\x03\x04", "is not a .safetensors file"),
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


def test_the_same_weights_give_the_same_file(tmp_path):
    tensors = build_generator(SMALL, scale=4).state_dict()
    for name in ("a", "b"):
        save_tensors(tmp_path / f"{name}.safetensors", tensors, {"x": "1", "y": "2"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


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


def test_a_pickle_is_refused_whatever_it_is_called(tmp_path):
    state = build_generator(SMALL, scale=4).state_dict()
    for name, words in (("net.pth", "pickled weights"), ("net.safetensors", "is damaged")):
        torch.save(state, tmp_path / name)
        with pytest.raises((UsageError, DamagedData), match=words):
            load_generator(tmp_path / name, device=CPU)


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
