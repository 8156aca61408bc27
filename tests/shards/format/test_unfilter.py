"""Inverse PNG filters match the specification and OpenCV, in C and in numpy."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from shards.format import png, unfilter
from shards.images.headers import read_header
from shards.images.photos import decode_photo
from tests.shards.images.support import IMAGE, LOSSLESS, chunk, refused

NONE, SUB, UP, AVERAGE, PAETH = range(5)


def paeth(a: int, b: int, c: int) -> int:
    """Follow https://www.w3.org/TR/png-3/#9Filter-type-4-Paeth literally."""
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    if pa <= pb and pa <= pc:
        return a
    return b if pb <= pc else c


def filtered(image: np.ndarray, kinds: list[int]) -> bytes:
    """Return the rows of an RGB image, each with its own filter type."""
    height, width, _ = image.shape
    padded = np.zeros((height + 1, 3 + 3 * width), int)
    padded[1:, 3:] = image.reshape(height, -1)
    rows = b""
    for y, kind in enumerate(kinds):
        x, a, b, c = padded[y + 1, 3:], padded[y + 1, :-3], padded[y, 3:], padded[y, :-3]
        guess = {
            NONE: 0 * x, SUB: a, UP: b, AVERAGE: (a + b) // 2,
            PAETH: np.array([paeth(*item) for item in zip(a, b, c, strict=True)]),
        }[kind]  # fmt: skip
        rows += bytes([kind]) + ((x - guess) % 256).astype(np.uint8).tobytes()
    return rows


def undone(rows: list[bytes], height: int, width: int) -> np.ndarray | None:
    out = np.empty((len(rows), height, width, 3), np.uint8)
    return out if unfilter.unfilter(rows, out) else None


def stored(image: np.ndarray, rows: bytes, *, cuts: tuple[int, ...] = ()) -> bytes:
    """Return a PNG of filtered rows; its stream is split into several IDATs."""
    stream = zlib.compress(rows)
    edges = [0, *cuts, len(stream)]
    parts = [chunk(b"IDAT", stream[a:b]) for a, b in itertools.pairwise(edges)]
    size = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    return b"".join((png.SIGNATURE, chunk(b"IHDR", size), *parts, chunk(b"IEND", b"")))


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(unfilter, "_load_kernel", lambda: (None, "there is no C compiler"))


needs_kernel = pytest.mark.skipif(
    bool(unfilter.missing_kernel_reason()), reason=unfilter.missing_kernel_reason()
)
SIZES = [(1, 1), (1, 7), (2, 1), (5, 2), (9, 3), (24, 40), (3, 129)]


@needs_kernel
@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_filter_is_undone(kind, height, width):
    image = np.random.default_rng(kind).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = undone([filtered(image, [kind] * height)], height, width)
    np.testing.assert_array_equal(made[0], image)


@needs_kernel
@pytest.mark.parametrize("seed", range(40))
def test_mixed_filters_of_several_smooth_and_rough_images(seed):
    """In smooth images Paeth's distances tie."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 30, 2).tolist()
    images = random.integers(0, random.choice([2, 4, 256]), (3, height, width, 3)).astype(np.uint8)
    rows = [filtered(image, random.integers(0, 5, height).tolist()) for image in images]
    np.testing.assert_array_equal(undone(rows, height, width), images)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_without_a_compiler_rows_of_filter_up_are_undone(without_compiler, height, width):
    images = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    rows = [filtered(image, [UP] * height) for image in images]
    np.testing.assert_array_equal(undone(rows, height, width), images)
    assert undone([filtered(images[0], [*[UP] * (height - 1), PAETH])], height, width) is None


@pytest.mark.parametrize("row", [0, 3, 7])
def test_an_invalid_filter_type_is_reported(row):
    image = IMAGE[:8, :8]
    rows = bytearray(filtered(image, [UP] * 8))
    rows[row * 25] = 5
    assert undone([filtered(image, [UP] * 8), bytes(rows)], 8, 8) is None


@needs_kernel
@pytest.mark.parametrize("cuts", [(), (1,), (50, 51, 400)])
def test_a_photo_of_any_filters_and_idats_is_read_without_opencv(monkeypatch, cuts):
    content = stored(IMAGE, filtered(IMAGE, [y % 5 for y in range(24)]), cuts=cuts)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB), IMAGE
    )
    monkeypatch.delattr(cv2, "imdecode")
    np.testing.assert_array_equal(decode_photo(content).pixels, IMAGE)


def test_a_photo_is_the_same_without_a_compiler(without_compiler):
    content = stored(IMAGE, filtered(IMAGE, [y % 5 for y in range(24)]))
    np.testing.assert_array_equal(decode_photo(content).pixels, IMAGE)


def test_opencv_decodes_what_the_fast_path_rejects():
    rows = filtered(IMAGE, [PAETH] * 24)
    whole = stored(IMAGE, rows)
    plain = {"height": 24, "width": 40}
    assert png.decode_plain(stored(IMAGE, rows[:-1]), **plain) is None
    assert png.decode_plain(stored(IMAGE, rows + b"\0"), **plain) is None
    assert png.decode_plain(stored(IMAGE, b"\5" + rows[1:]), **plain) is None
    at = whole.index(b"IEND") - 4 - 8  # the checksum of the stream precedes that of the chunk
    assert png.decode_plain(whole[: at + 3] + b"\0" + whole[at + 4 :], **plain) is None
    apart = stored(IMAGE, rows, cuts=(90,)).replace(
        chunk(b"IDAT", zlib.compress(rows)[90:]),
        chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", zlib.compress(rows)[90:]),
    )
    assert png.decode_plain(apart, **plain) is None


@pytest.mark.parametrize("kind", [b"ABCD", b"CgBI", b"IHDR"])
@pytest.mark.parametrize("behind", [False, True])
def test_an_unknown_critical_chunk_is_refused_with_and_without_a_compiler(kind, behind):
    whole = stored(IMAGE, filtered(IMAGE, [PAETH] * 24))
    at = whole.index(b"IEND") - 4 if behind else 33
    body = whole[16:29] if kind == b"IHDR" else b"x"
    assert refused(whole[:at] + chunk(kind, body) + whole[at:]) == "DAMAGED"


@pytest.mark.parametrize("palette", [b"", bytes(4)])
def test_an_invalid_palette_is_left_to_opencv(palette):
    content = LOSSLESS["png"][:33] + chunk(b"PLTE", palette) + LOSSLESS["png"][33:]
    assert not read_header(content).plain


def test_a_match_beyond_the_window_is_left_to_opencv():
    """zlib refuses it, ISA-L does not check it."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image[20:] = image[:20]
    content = stored(image, filtered(image, [NONE] * 40))
    stream = zlib.compress(filtered(image, [NONE] * 40))
    narrow = b"\x18" + bytes([31 - (0x18 * 256) % 31]) + stream[2:]  # 512 bytes
    lying = content.replace(chunk(b"IDAT", stream), chunk(b"IDAT", narrow))
    assert len(lying) == len(content)
    assert png.decode_plain(lying, height=40, width=40) is None
    assert refused(lying) == "DAMAGED"
    np.testing.assert_array_equal(decode_photo(content).pixels, image)


@pytest.mark.parametrize("rows", [lambda rows: rows[:-1], lambda rows: b"\5" + rows[1:]])
def test_undecodable_pixels_are_refused(rows):
    assert refused(stored(IMAGE, rows(filtered(IMAGE, [PAETH] * 24)))) == "DAMAGED"


def test_an_overlong_stream_allocates_no_memory():
    """A stream of a hundred megabytes instead of a thousand bytes."""
    bomb = stored(IMAGE[:16, :16], bytes(100_000_000))
    tracemalloc.start()
    try:
        assert png.decode_plain(bomb, height=16, width=16) is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "other",
    [
        cv2.imencode(".png", IMAGE[..., 0])[1].tobytes(),
        cv2.imencode(".png", np.dstack([IMAGE, IMAGE[..., :1]]))[1].tobytes(),
        cv2.imencode(".png", IMAGE.astype(np.uint16) << 8)[1].tobytes(),
        LOSSLESS["png"][:33] + chunk(b"tRNS", bytes(6)) + LOSSLESS["png"][33:],
        LOSSLESS["webp"],
    ],
    ids=["grey", "alpha", "16 bit", "one colour clear", "webp"],
)
def test_other_images_are_not_plain(other):
    assert not read_header(other).plain
    assert read_header(LOSSLESS["png"]).plain
