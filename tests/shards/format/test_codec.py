"""Every codec is lossless, reports damage, and is readable by other programs."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from shards.errors import DamagedData
from shards.format import codec
from shards.format.manifest import load_manifest
from shards.read.dataset import open_dataset
from shards.verify import verify
from tests.shards.support import make_dataset, make_patch

CODECS = ("png", "webp", "raw")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (128, 128), (3, 250)])
def test_every_pixel_comes_back_and_the_bytes_repeat(name, height, width):
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = codec.encode(image, name)
    np.testing.assert_array_equal(codec.decode(content, name), image)
    assert codec.encode(image.copy(), name) == content


def test_numpy_reads_raw_and_webp_of_another_writer_is_read():
    image = make_patch(2)
    np.testing.assert_array_equal(np.load(io.BytesIO(codec.encode(image, "raw"))), image)
    stream = io.BytesIO()
    np.save(stream, image)
    assert codec.encode(image, "raw") == stream.getvalue()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"RIFF\x10\0\0\0WEBPVP8L", codec.encode(make_patch(1), "png")[:90]],
)
def test_other_content_is_an_error(name, content):
    with pytest.raises(DamagedData):
        codec.decode(content, name)


def test_raw_of_another_type_is_an_error():
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 4, 3), np.float32))
    with pytest.raises(DamagedData, match=r"float32\[4, 4, 3\] instead of uint8"):
        codec.decode(stream.getvalue(), "raw")


@pytest.fixture(params=["webp", "raw"])
def folder(request, tmp_path):
    return make_dataset(tmp_path / "data", codec_name=request.param)


def test_a_data_set_of_each_codec_is_read_and_verified(folder, dataset):
    expected, actual = open_dataset(dataset), open_dataset(folder)
    for split in ("train", "val"):
        ours, theirs = actual.split(split), expected.split(split)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.hr, other.hr)
            np.testing.assert_array_equal(one.lr, other.lr)
            assert (one.key, one.info) == (other.key, other.info)
    assert verify(folder, load_manifest(folder), deep=True, advance=lambda *_: None) == []


def test_the_checksum_detects_a_flipped_bit_in_pixels(folder):
    split = open_dataset(folder).split("train")
    path = folder / split.shard_of(0)
    split.close()
    content = bytearray(path.read_bytes())
    content[512 + 700] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(DamagedData, match="wrong checksum"):
        open_dataset(folder).split("train")[0]


def test_a_manifest_with_the_wrong_codec_is_an_error(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["codec"] = "png"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedData, match=r"is stored instead of hr\.png"):
        open_dataset(folder).split("train")[0]


def test_a_webp_is_the_same_in_another_process():
    code = (
        "import hashlib; from shards.format import codec; from tests.shards.support import make_patch;"
        "print(hashlib.sha256(codec.encode(make_patch(1), 'webp')).hexdigest())"
    )
    run = [sys.executable, "-c", code]
    digests = {subprocess.run(run, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1
