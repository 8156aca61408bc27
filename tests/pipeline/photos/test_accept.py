"""Acceptance of photos: sRGB, no JPEG blocks, large enough."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.options import MAX_BLOCKINESS, Options
from pipeline.photos.accept import accept_photo, measure_blockiness
from pipeline.photos.scan import scan_sources
from shards.format import png
from shards.images import resize
from shards.images.color import to_srgb
from shards.images.photos import RejectedPhoto
from shards.read.dataset import open_dataset
from tests.pipeline.support import P3, make, make_photo, prep, with_profile

PHOTO = make_photo(3, height=480, width=640)


def with_tiff_profile(image: np.ndarray, profile: bytes) -> bytes:
    """Return a TIFF with its directory moved to the end and one more tag."""
    content = bytearray(cv2.imencode(".tif", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = bytes(content[at + 2 : at + 2 + 12 * count])
    start = len(content)
    content += profile
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", count + 1) + entries
    content += struct.pack("<HHII", 34675, 7, len(profile), start) + bytes(4)
    return bytes(content)


def accept(folder: Path, content: bytes, suffix: str = ".png", **options: object):
    folder.mkdir(exist_ok=True)
    (folder / f"one{suffix}").write_bytes(content)
    return accept_photo(scan_sources([folder]).photos[0], Options(**options))


def jpeg(image: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")


def smooth_photo(seed: int) -> np.ndarray:
    """Return noise whose amplitude falls with frequency, as in a photo, so that quantisation shows."""
    random = np.random.default_rng(seed)
    total = np.full((640, 800, 3), 128.0)
    for cells in (5, 10, 20, 40, 80):
        octave = random.normal(0, 150 / cells, (cells * 4 // 5, cells, 3))
        total += cv2.resize(octave, (800, 640), interpolation=cv2.INTER_CUBIC)
    return (total + random.normal(0, 0.8, total.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_photo_of_another_color_space_is_converted_to_srgb(form, tmp_path):
    content = (with_profile if form == "png" else with_tiff_profile)(PHOTO, P3)
    suffix = ".png" if form == "png" else ".tif"
    accepted = accept(tmp_path / "p", content, suffix)
    np.testing.assert_array_equal(accepted.image, to_srgb(PHOTO, P3))
    assert not np.array_equal(accepted.image, PHOTO)
    ignored = accept(tmp_path / "p", content, suffix, icc="ignore")
    np.testing.assert_array_equal(ignored.image, PHOTO)


def test_a_photo_with_an_unsupported_profile_is_rejected(tmp_path):
    content = with_profile(PHOTO, P3.replace(b"rTRC", b"A2B0"))
    with pytest.raises(RejectedPhoto, match="look-up tables") as caught:
        accept(tmp_path / "p", content)
    assert caught.value.code == "PROFILE"


def test_blockiness_is_measured_at_any_offset():
    image = smooth_photo(1)
    clean = measure_blockiness(image)
    decoded = {q: simplejpeg.decode_jpeg(jpeg(image, q)) for q in (95, 75, 50)}
    assert 0.9 < clean < 1.1
    assert clean < measure_blockiness(decoded[95]) < measure_blockiness(decoded[75])
    assert min(measure_blockiness(decoded[q]) for q in (75, 50)) > MAX_BLOCKINESS
    cut = decoded[50][3:, 5:]
    assert measure_blockiness(cut) == pytest.approx(measure_blockiness(decoded[50]), rel=0.15)
    assert measure_blockiness(np.zeros((20, 20, 3), np.uint8)) == 1.0
    assert measure_blockiness(np.zeros((200, 200, 3), np.uint8)) == 1.0


def test_one_long_edge_is_not_blockiness():
    image = smooth_photo(2)
    image[319:] //= 2
    assert measure_blockiness(image) < 1.1


def test_blocky_photos_are_rejected_or_halved(tmp_path):
    image = smooth_photo(4)
    content = jpeg(image, 40)
    with pytest.raises(RejectedPhoto) as caught:
        accept(tmp_path / "p", content, ".jpg", max_blockiness=1.3)
    assert caught.value.code == "BLOCKY"
    accepted = accept(tmp_path / "p", content, ".jpg", pre_scale=0.5)
    decoded = simplejpeg.decode_jpeg(content)
    np.testing.assert_array_equal(accepted.image, resize.downscale(decoded, scale=2))
    assert accepted.pre_scale == 0.5
    assert accepted.blockiness > MAX_BLOCKINESS
    (tmp_path / "p/one.jpg").unlink()
    clean = accept(tmp_path / "p", png.encode_rgb(image), pre_scale=0.5)
    assert clean.pre_scale == 1.0
    np.testing.assert_array_equal(clean.image, image)


def test_blockiness_is_in_each_sample_if_requested(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.jpg").write_bytes(jpeg(smooth_photo(seed), 40))
        (photos / f"clean{seed}.png").write_bytes(png.encode_rgb(smooth_photo(10 + seed)))
    make(photos, tmp_path / "out", "--pre-scale", 0.5)
    split = open_dataset(tmp_path / "out").split("train")
    samples = {pair.info.src: (pair.info.pre_scale, pair.info.blockiness) for pair in split}
    assert {name.startswith("clean") for name in samples} == {True, False}
    for name, (factor, blocks) in samples.items():
        assert factor == (1.0 if name.startswith("clean") else 0.5)
        assert (blocks > MAX_BLOCKINESS) != name.startswith("clean")
    keys = json.loads(split.members(0)[2]).keys()
    assert {"pre_scale", "blockiness"} <= keys


def test_a_photo_that_becomes_too_small_is_rejected(tmp_path):
    content = jpeg(smooth_photo(5)[:200, :200], 30)
    with pytest.raises(RejectedPhoto) as caught:
        accept(tmp_path / "p", content, ".jpg", pre_scale=0.5)
    assert caught.value.code == "TOO_SMALL"


def test_wrong_ratios_are_explained(photos, tmp_path):
    result = prep("--src", photos, "--out", tmp_path / "o", "--max-blockiness", 0.5, code=2)
    assert "--max-blockiness 0.5: is below 1; use a ratio above 1" in result.stderr
