from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from shards.format import png
from shards.images.photos import (
    READ_FAULT,
    Photo,
    RejectedPhoto,
    decode_photo,
    looks_like_photo,
    read_photo,
)
from tests.shards.images.support import IMAGE, LOSSLESS, chunk, encode, refused, tiff

JPEG = simplejpeg.encode_jpeg(IMAGE, quality=95)


def riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)


def with_exif(kind: str, orientation: int, order: str = "<") -> bytes:
    block = exif(orientation, order)
    if kind == "png":
        content = LOSSLESS["png"]
        return content[:33] + chunk(b"eXIf", block) + content[33:]
    if kind == "webp":
        height, width, _ = IMAGE.shape
        canvas = (
            bytes([8, 0, 0, 0])
            + struct.pack("<I", width - 1)[:3]
            + struct.pack("<I", height - 1)[:3]
        )
        body = riff(b"VP8X", canvas) + LOSSLESS["webp"][12:] + riff(b"EXIF", block)
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    body = b"Exif\0\0" + block
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + JPEG[2:]


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation by Exif 3.0, table 6: the edges of the first row and the first column."""
    by_definition = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],  # first column is the right edge
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),  # first row is the left edge
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }
    return by_definition[orientation](image)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_exact_pixels(kind):
    photo = decode_photo(LOSSLESS[kind])
    np.testing.assert_array_equal(photo.pixels, IMAGE)
    assert photo.pixels.flags.c_contiguous
    assert photo.sha256 == hashlib.sha256(LOSSLESS[kind]).hexdigest()
    assert (photo.bit_depth, photo.grey, photo.notes) == (8, False, ())


def test_jpeg_pixels_equal_those_of_simplejpeg():
    np.testing.assert_array_equal(decode_photo(JPEG).pixels, simplejpeg.decode_jpeg(JPEG))


def test_sixteen_bits_lose_the_low_byte_with_a_note():
    deep = IMAGE.astype(np.uint16) * 256 + 77
    photo = decode_photo(encode(".png", deep))
    np.testing.assert_array_equal(photo.pixels, IMAGE)
    assert photo.bit_depth == 16
    assert "16 bit reduced to 8" in photo.notes


def test_sixteen_bits_of_a_tiff_keep_the_order_of_colours():
    deep = IMAGE.astype(np.uint16) * 256 + 77
    np.testing.assert_array_equal(decode_photo(encode(".tif", deep)).pixels, IMAGE)


def test_a_planar_or_white_is_zero_tiff_is_decoded_or_refused():
    deep = IMAGE.astype(np.uint16) * 256 + 77
    np.testing.assert_array_equal(decode_photo(tiff(deep, 2)).pixels, IMAGE)
    np.testing.assert_array_equal(decode_photo(tiff(IMAGE, 2, t284=2)).pixels, IMAGE)
    negative = decode_photo(tiff(IMAGE[..., :1], 0)).pixels
    np.testing.assert_array_equal(negative, 255 - np.repeat(IMAGE[..., :1], 3, axis=2))
    assert refused(tiff(deep, 2, t284=2)) == "MODE"
    assert refused(tiff(deep[..., :1], 0)) == "MODE"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_become_eight_bits_of_rgb(suffix):
    photo = decode_photo(encode(suffix, IMAGE[..., 0].astype(np.uint16) * 256 + 77))
    np.testing.assert_array_equal(photo.pixels, np.repeat(IMAGE[..., :1], 3, axis=2))
    assert (photo.bit_depth, photo.grey) == (16, True)


@pytest.mark.parametrize(
    "content", [encode(f".{kind}", IMAGE[..., 0]) for kind in ("png", "bmp", "tif")]
)
def test_grey_becomes_rgb_and_is_flagged(content):
    photo = decode_photo(content)
    np.testing.assert_array_equal(photo.pixels, np.repeat(IMAGE[..., :1], 3, axis=2))
    assert photo.grey


def test_grey_with_opaque_alpha_is_grey():
    height, width = IMAGE.shape[:2]
    rows = np.dstack([IMAGE[..., 0], np.full((height, width), 255, np.uint8)]).reshape(height, -1)
    body = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    head = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    parts = (png.SIGNATURE, chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b""))
    photo = decode_photo(b"".join(parts))
    np.testing.assert_array_equal(photo.pixels, np.repeat(IMAGE[..., :1], 3, axis=2))
    assert photo.grey


def test_grey_jpeg_is_grey():
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(IMAGE[..., :1]), colorspace="GRAY")
    photo = decode_photo(content)
    assert photo.grey
    assert (photo.pixels == photo.pixels[..., :1]).all()


def test_cmyk_is_converted_by_the_product_of_inks():
    inks = np.ascontiguousarray(np.dstack([IMAGE, IMAGE[..., 0]]))
    content = simplejpeg.encode_jpeg(inks, quality=100, colorspace="CMYK", colorsubsampling="444")
    photo = decode_photo(content)
    stored = simplejpeg.decode_jpeg(content, colorspace="CMYK").astype(float)
    light = stored[..., :3] * stored[..., 3:] / 255  # Adobe stores inks inverted
    assert np.abs(photo.pixels - light).max() <= 1
    assert "CMYK converted" in photo.notes


def test_opaque_alpha_is_dropped_and_transparent_alpha_is_optional():
    opaque = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_photo(encode(".png", opaque)).pixels, IMAGE)
    opaque[3, 4, 3] = 254
    assert refused(encode(".png", opaque)) == "ALPHA"
    np.testing.assert_array_equal(decode_photo(encode(".png", opaque), alpha="drop").pixels, IMAGE)


def test_opaque_alpha_of_sixteen_bits_is_dropped():
    deep = np.dstack([IMAGE.astype(np.uint16) * 256, np.full(IMAGE.shape[:2], 65535, np.uint16)])
    np.testing.assert_array_equal(decode_photo(encode(".png", deep)).pixels, IMAGE)


def bmp(depth: int, *masks: int) -> bytes:
    """Return IMAGE with 32 bits per pixel, blue first, and a header that says otherwise."""
    pixels = np.dstack([IMAGE[::-1, :, ::-1], IMAGE[..., 0]]).tobytes()
    head = struct.pack("<IiiHHI", 40, IMAGE.shape[1], IMAGE.shape[0], 1, depth, 3)
    head += struct.pack("<I16x3I", len(pixels), *masks)
    return (
        b"BM" + struct.pack("<III", 14 + len(head) + len(pixels), 0, 14 + len(head)) + head + pixels
    )


def test_a_bmp_with_other_bit_fields_is_refused():
    usual = decode_photo(bmp(32, 0xFF0000, 0xFF00, 0xFF), alpha="drop")
    np.testing.assert_array_equal(usual.pixels, IMAGE)
    assert refused(bmp(32, 0xFF, 0xFF00, 0xFF0000), alpha="drop") == "MODE"
    assert refused(bmp(16, 0xF800, 0x7E0, 0x1F), alpha="drop") == "MODE"


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_with_transparent_pixels_is_refused_or_keeps_its_grey(kind):
    grey = encode(".png", IMAGE[..., 0])
    contents = {
        "png": grey[:33] + chunk(b"tRNS", struct.pack(">H", IMAGE[0, 0, 0])) + grey[33:],
        "tiff": tiff(np.ascontiguousarray(IMAGE[..., :2]), 1, t338=2),
    }
    assert refused(contents[kind]) == "ALPHA"
    dropped = decode_photo(contents[kind], alpha="drop").pixels
    np.testing.assert_array_equal(dropped, np.repeat(IMAGE[..., :1], 3, axis=2))


def test_a_tiff_with_premultiplied_alpha_is_refused():
    clear = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_photo(tiff(clear, 2, t338=2)).pixels, IMAGE)
    clear[3, 4, 3] = 100
    assert refused(tiff(clear, 2, t338=2), alpha="drop") == "ALPHA"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_png_and_webp_are_oriented_once_by_exif(kind, orientation):
    photo = decode_photo(with_exif(kind, orientation))
    np.testing.assert_array_equal(photo.pixels, turned(IMAGE, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_jpeg_is_oriented_once_by_exif(orientation, order):
    photo = decode_photo(with_exif("jpeg", orientation, order))
    np.testing.assert_array_equal(photo.pixels, turned(simplejpeg.decode_jpeg(JPEG), orientation))


@pytest.mark.parametrize("second", [exif(1), bytes(range(200))], ids=["another", "rest"])
def test_the_first_exif_block_of_a_jpeg_applies(second):
    once = with_exif("jpeg", 6)
    body = b"Exif\0\0" + second  # written by an editor, or the overflow of the first block
    at = 4 + int.from_bytes(once[4:6], "big")
    twice = once[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + once[at:]
    np.testing.assert_array_equal(decode_photo(twice).pixels, decode_photo(once).pixels)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_invalid_orientation_is_ignored(orientation):
    np.testing.assert_array_equal(decode_photo(with_exif("png", orientation)).pixels, IMAGE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_oriented_once(orientation):
    content = bytearray(LOSSLESS["tiff"])
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = [bytes(content[at + 2 + 12 * n :][:12]) for n in range(count)]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    np.testing.assert_array_equal(decode_photo(bytes(content)).pixels, turned(IMAGE, orientation))


CUTTABLE = {
    **LOSSLESS,
    "jpeg": JPEG,
    "progressive jpeg": encode(".jpg", IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg with restarts": encode(".jpg", IMAGE, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "lossy webp": encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 80),
    "plain tiff": encode(".tif", IMAGE, cv2.IMWRITE_TIFF_COMPRESSION, 1),
}


@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_file_truncated_anywhere_is_refused(kind):
    content = CUTTABLE[kind]
    assert isinstance(decode_photo(content), Photo)
    codes = {refused(content[:length]) for length in range(32, len(content))}
    assert codes == {"DAMAGED" if "tiff" in kind else "CUT_OFF"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_large_truncated_jpeg_is_refused(share):
    smooth = cv2.resize(IMAGE[:6, :8], (640, 480), interpolation=cv2.INTER_CUBIC)
    content = simplejpeg.encode_jpeg(smooth, quality=90)
    assert refused(content[: int(len(content) * share)]) == "CUT_OFF"


def test_a_truncated_jpeg_is_reported_as_truncated():
    assert refused(JPEG[: len(JPEG) // 2]) == "CUT_OFF"


def test_a_flipped_bit_in_any_byte_of_a_png_is_detected():
    content = LOSSLESS["png"]
    for at in range(8, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        assert refused(bytes(damaged)) in ("CUT_OFF", "DAMAGED", "TOO_LARGE")


def test_a_small_file_that_demands_gigabytes_is_refused_immediately():
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 6, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9999)))
        + chunk(b"IEND", b"")
    )
    before = time.monotonic()
    assert refused(bomb) == "TOO_LARGE"
    assert time.monotonic() - before < 1


def test_the_caller_sets_the_limit_of_megapixels():
    assert refused(LOSSLESS["png"], max_megapixels=0.0005) == "TOO_LARGE"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "EMPTY"), (b"hello", "NOT_IMAGE"), (b"<!doctype html><html>", "NOT_IMAGE"),
        (b"GIF89a" + bytes(60), "NOT_IMAGE"),
        (bytes(1000), "NOT_IMAGE"), (b"\xff\xd8\xff", "CUT_OFF"), (b"\x89PNG\r\n\x1a\n", "CUT_OFF"),
        (encode(".tif", IMAGE.astype(np.float32)), "MODE"), (tiff(IMAGE, 2, t339=2), "MODE"),
        (b"PK\3\4" + bytes(60), "NOT_IMAGE"),
        (bytes(4) + b"ftypheic" + bytes(60), "NOT_IMAGE"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_their_kind(content, code):
    assert refused(content) == code


@pytest.mark.parametrize("kind", [*LOSSLESS, "jpeg"])
def test_a_mutated_file_is_decoded_or_refused(kind):
    whole = {**LOSSLESS, "jpeg": JPEG}[kind]
    rng = np.random.default_rng(len(whole))
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), rng.integers(1, 6)):
            content[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del content[rng.integers(0, len(content)) :]
        with contextlib.suppress(RejectedPhoto):
            assert isinstance(decode_photo(bytes(content), max_megapixels=10), Photo)


def test_the_content_decides_the_format(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(LOSSLESS["png"])
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.jpg").pixels, IMAGE)


def test_file_names_may_be_any_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(LOSSLESS["png"])
    np.testing.assert_array_equal(read_photo(path).pixels, IMAGE)


@pytest.mark.parametrize("what", ["pipe", "folder", "missing", "dangling"])
def test_only_regular_files_are_opened(tmp_path, what):
    path = tmp_path / "photo.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RejectedPhoto) as caught:
        read_photo(path)
    assert caught.value.code == "NOT_FILE"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ESTALE, READ_FAULT), (errno.EMFILE, READ_FAULT), (errno.EACCES, "NO_ACCESS")],
)
def test_transient_and_permanent_read_errors_differ(tmp_path, monkeypatch, number, code):
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        with pytest.raises(RejectedPhoto) as caught:
            read_photo(tmp_path / "photo.png")
    assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(LOSSLESS["png"])
    path.chmod(0)
    with pytest.raises(RejectedPhoto) as caught:
        read_photo(path)
    assert caught.value.code == "NO_ACCESS"


def test_bad_photos_print_nothing(capfd):
    for content in (
        LOSSLESS["png"][:300],
        LOSSLESS["tiff"][:-9],
        LOSSLESS["webp"][:80],
        JPEG[:300],
    ):
        refused(content)
    assert capfd.readouterr() == ("", "")


def test_other_png_chunks_change_and_print_nothing(capfd):
    """Extra animation frame, gamma, profile, and a comment that libpng warns about."""
    content, frame = LOSSLESS["png"], struct.pack(">IIIIIHHBB", 0, 20, 12, 3, 5, 1, 10, 0, 0)
    more = (
        chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", frame)
        + chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(9)))
        + chunk(b"sBIT", bytes(9)) + chunk(b"zTXt", b"Comment\0\0" + bytes(9))
    )  # fmt: skip
    photo = decode_photo(content[:33] + more + content[33:])
    np.testing.assert_array_equal(photo.pixels, IMAGE)
    assert photo.icc == bytes(9)
    assert capfd.readouterr() == ("", "")


def test_real_photos_are_read():
    folder = Path(__file__).resolve().parents[3] / "../shared/data/photos"
    if not folder.is_dir():
        pytest.skip("no photos beside the checkout")
    for path in sorted(folder.glob("*.[jp][pn]g"))[:4]:
        assert read_photo(path).pixels.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "photo"),
    [("a.PNG", True), ("b.Jpeg", True), ("._a.png", False), ("a.txt", False), (".png", False), ("png", False)],
)  # fmt: skip
def test_suffixes_select_photo_files(name, photo):
    assert looks_like_photo(name) is photo
