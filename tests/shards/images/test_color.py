"""Colour profiles against littleCMS (through stock PIL) and the formulas of the ICC."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.images.color import UnknownProfile, to_srgb
from tests.shards.images.support import P3, PROFILES, SRGB, SRGB_CURVE, profile_of

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
IMAGE = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
BY_LITTLE_CMS = """
import io, sys, numpy
from PIL import Image, ImageCms
image = Image.fromarray(numpy.load(sys.argv[1]))
if sys.argv[3] == "grey":
    image = image.getchannel(0)
profile = ImageCms.ImageCmsProfile(io.BytesIO(open(sys.argv[2], "rb").read()))
srgb = ImageCms.createProfile("sRGB")
made = ImageCms.profileToProfile(image, profile, srgb, renderingIntent=1, outputMode="RGB", flags=0x100)
numpy.save(sys.argv[4], numpy.asarray(made))
"""


@pytest.mark.parametrize("name", PROFILES)
def test_colors_match_little_cms(name, tmp_path):
    if not STOCK_PILLOW.is_dir():
        pytest.skip("no PIL with littleCMS here; `make test` installs one")
    image = np.repeat(IMAGE[..., :1], 3, axis=2) if name == "grey" else IMAGE
    np.save(tmp_path / "in.npy", image)
    (tmp_path / "profile.icc").write_bytes(profile_of(*PROFILES[name]))
    paths = [str(tmp_path / part) for part in ("in.npy", "profile.icc")]
    subprocess.run(
        [sys.executable, "-c", BY_LITTLE_CMS, *paths, name, str(tmp_path / "out.npy")],
        check=True,
        env={"PYTHONPATH": str(STOCK_PILLOW), "PATH": "/usr/bin:/bin"},
    )
    expected = np.load(tmp_path / "out.npy").astype(int)
    converted = to_srgb(image, profile_of(*PROFILES[name])).astype(int)
    off = np.abs(converted - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.03
    assert np.abs(expected - image).max() > 4  # the profile changes the pixels


def test_a_profile_of_srgb_changes_nothing():
    assert to_srgb(IMAGE, profile_of(SRGB, SRGB_CURVE)) is IMAGE


def test_grey_stays_grey_and_black_and_white_stay():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for name in ("adobe", "table", "grey"):
        made = to_srgb(ramp, profile_of(*PROFILES[name])).astype(int)
        assert np.abs(made - made[..., :1]).max() <= 1
        assert made[0, 0].tolist() == [0, 0, 0]
        assert made[0, -1].tolist() == [255, 255, 255]
        assert (np.diff(made[0, :, 0]) >= 0).all()


def test_large_photos_are_converted_like_small_ones():
    large = np.tile(IMAGE, (20, 20, 1))
    made = to_srgb(large, profile_of(*PROFILES["p3"]))
    np.testing.assert_array_equal(
        made, np.tile(to_srgb(IMAGE, profile_of(*PROFILES["p3"])), (20, 20, 1))
    )


def test_an_unsupported_profile_states_its_reason():
    good = profile_of(P3, SRGB_CURVE)
    damaged = {
        "damaged": good[:130],
        "damaged colour": good.replace(b"para", b"nope"),
        "without rTRC": good.replace(b"rTRC", b"A2B0"),
        "of CMYK values": good.replace(b"RGB ", b"CMYK"),
        "of unknown values": bytes(200),
        "with impossible primaries": profile_of(((8.0, 0, 0), *P3[1:]), SRGB_CURVE),
    }
    for words, profile in damaged.items():
        with pytest.raises(UnknownProfile, match=words):
            to_srgb(IMAGE, profile)


@pytest.mark.parametrize(
    ("kind", "values"),
    [(1, (2.2, 0, 1)), (2, (2.2, 0, 0, 0)), (0, (-1,)), (3, (9999, 9999, 0, 1, 0))],
)
def test_an_invalid_curve_is_a_damaged_profile(kind, values):
    curve = struct.pack(
        f">4s4xHxx{len(values)}i", b"para", kind, *(round(65536 * v) for v in values)
    )
    with pytest.raises(UnknownProfile, match="damaged"):
        to_srgb(IMAGE, profile_of(P3, curve))
