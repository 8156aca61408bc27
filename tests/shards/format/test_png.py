"""PNG is lossless, readable by any reader, and deterministic."""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib

import cv2
import isal
import numpy as np
import pytest

from shards.errors import DamagedData
from shards.format import png
from shards.images.photos import decode_photo
from tests.shards.support import make_patch


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (128, 128), (3, 250), (257, 5)])
def test_png_returns_every_pixel_here_and_in_opencv(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = png.encode_rgb(image)
    np.testing.assert_array_equal(png.decode_rgb(content), image)
    foreign = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(foreign, image)


def test_png_of_another_writer_is_read():
    image = make_patch(3)
    content = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    np.testing.assert_array_equal(png.decode_rgb(content), image)


def test_pixels_longer_than_a_chunk_are_split(monkeypatch):
    image = make_patch(5)
    monkeypatch.setattr(png, "_MAX_CHUNK_BYTES", 1000)
    content = png.encode_rgb(image)
    pieces = [
        stop - start - 12 for kind, start, stop in png.read_chunks(content) if kind == b"IDAT"
    ]
    assert pieces[:-1] == [1000] * (len(pieces) - 1)
    assert len(pieces) > 1
    np.testing.assert_array_equal(decode_photo(content).pixels, image)
    np.testing.assert_array_equal(png.decode_rgb(content), image)


def test_any_flipped_bit_of_a_png_is_detected_or_harmless():
    image = make_patch(4)
    content = png.encode_rgb(image)
    refused = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        try:
            decoded = png.decode_rgb(bytes(damaged))
        except DamagedData:
            refused += 1
            continue
        np.testing.assert_array_equal(decoded, image)
    assert refused >= len(content) - 4  # the checksum of IEND does not cover pixels


def test_png_is_one_idat_with_filter_up_on_every_row():
    content = png.encode_rgb(make_patch(1)[:8, :8])
    head = struct.pack(">I4sIIBBBBB", 13, b"IHDR", 8, 8, 8, 2, 0, 0, 0)
    assert content[8:29] == head
    assert zlib.decompress(content[41:-16])[0::25] == b"\x02" * 8


FIRST_RELEASE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000002000000020802000000fdd49a73000000194944415478"
    "5e626210d1b0094861aa000300000000ffff0300150004012020101d0000000049454e44ae426082"
)
FIRST_RELEASE_PIXELS = np.arange(0, 240, 20, dtype=np.uint8).reshape(2, 2, 3)


def test_a_png_of_the_first_release_is_read():
    np.testing.assert_array_equal(png.decode_rgb(FIRST_RELEASE), FIRST_RELEASE_PIXELS)


@pytest.mark.skipif(isal.__version__ != "1.9.1", reason="the bytes are those of isal 1.9.1")
def test_png_bytes_equal_those_of_the_first_release():
    assert png.encode_rgb(FIRST_RELEASE_PIXELS) == FIRST_RELEASE
    assert hashlib.sha256(png.encode_rgb(make_patch(1))).hexdigest() == (
        "73a3d5a679a8b8125f42e07a4853ed93037a77d20b8d66a69907bb984a5dc451"
    )


def test_a_forged_size_is_an_error_and_allocates_no_memory(monkeypatch):
    asked = []
    real = png.isal_zlib.decompress

    def decompress(content: memoryview, *, bufsize: int) -> bytes:
        asked.append(bufsize)
        return real(content, bufsize=min(bufsize, 2**24))

    monkeypatch.setattr(png.isal_zlib, "decompress", decompress)
    head = png.encode_rgb(make_patch(1))
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    lying = head[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + head[33:]
    with pytest.raises(DamagedData, match="bytes of pixels instead of"):
        png.decode_rgb(lying)
    assert asked[0] < 1100 * len(lying)


def test_the_bytes_do_not_depend_on_the_stack_address():
    """ISA-L hashes an early position with a stack address; another thread has another stack."""
    random = np.random.default_rng(1)
    images = random.integers(0, 16, (16_000, 8, 25, 3), dtype=np.uint8)
    images[:, 0, :2] += 100  # a unique start ...
    images[:, 2, 5:9] = 0
    images[:, 3, 5:9] = images[:, 0, :4]  # ... except in the differences of this row
    here = [png.encode_rgb(image) for image in images]
    there: list[bytes] = []
    thread = threading.Thread(target=lambda: there.extend(map(png.encode_rgb, images)))
    thread.start()
    thread.join()
    assert here == there


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 17, 32, 128])
@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_decoding_many_equals_opencv(side, count):
    rng = np.random.default_rng(side)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
    contents = [png.encode_rgb(image) for image in images]
    if count > 3:  # one PNG in another form
        contents[3] = cv2.imencode(".png", images[3][..., ::-1])[1].tobytes()
    out = np.full((count, side, side, 3), 7, np.uint8)
    png.decode_many([memoryview(content) for content in contents], out)
    for number, content in enumerate(contents):
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(out[number], decoded)
        assert np.array_equal(png.decode_rgb(content), decoded)


def test_an_image_of_another_size_among_many_is_refused():
    image = np.zeros((8, 8, 3), np.uint8)
    contents = [png.encode_rgb(image), png.encode_rgb(image[:4, :4])]
    with pytest.raises(DamagedData, match="is 4x4 instead of 8x8"):
        png.decode_many(contents, np.empty((2, 8, 8, 3), np.uint8))
