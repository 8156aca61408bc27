"""Colour profiles: against littleCMS (through stock PIL) and against the formulas of the ICC."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.colour import UnknownProfile, to_srgb

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
IMAGE = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13518, 0.71188, 0.0), (0.03134, 0.00009, 0.82490))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""D50 XYZ of red, green and blue, as those profiles store them."""
IEC_61966 = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB_CURVE = struct.pack(">4s4xHxx5i", b"para", 3, *(round(65536 * v) for v in IEC_61966))
GAMMA_22 = struct.pack(">4s4xIH", b"curv", 1, round(2.2 * 256))
TABLE_18 = struct.pack(">4s4xI", b"curv", 512) + struct.pack(
    ">512H", *(round(65535 * (n / 511) ** 1.8) for n in range(512))
)
PROFILES = {
    "adobe": (ADOBE, struct.pack(">4s4xIH", b"curv", 1, 563)),
    "p3": (P3, SRGB_CURVE),
    "table": (P3, TABLE_18),
    "prophoto": (PROPHOTO, struct.pack(">4s4xIH", b"curv", 1, round(1.8 * 256))),
    "linear": (SRGB, struct.pack(">4s4xI", b"curv", 0)),
    "gamma": (ADOBE, struct.pack(">4s4xHxxi", b"para", 0, round(1.9 * 65536))),
    "grey": (None, GAMMA_22),
}
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


def profile_of(primaries: tuple[tuple[float, ...], ...] | None, curve: bytes) -> bytes:
    """A minimal version 2 profile."""
    point = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(point), b"desc": b"desc" + bytes(8) + b"\x00\x00\x00\x01\x00" + bytes(80)}
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0"
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
        tags |= {name + b"XYZ": xyz(p) for name, p in zip((b"r", b"g", b"b"), primaries, strict=True)}  # fmt: skip
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    space = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(24)
    head += struct.pack(">I3i", 0, *(round(65536 * v) for v in point)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def xyz(values: tuple[float, ...]) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * v) for v in values))


@pytest.mark.parametrize("name", PROFILES)
def test_colours_are_those_of_little_cms(name, tmp_path):
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
    found = to_srgb(image, profile_of(*PROFILES[name])).astype(int)
    off = np.abs(found - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.03
    assert np.abs(expected - image).max() > 4  # the profile does something


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


def test_large_photos_are_converted_as_small_ones():
    large = np.tile(IMAGE, (20, 20, 1))
    made = to_srgb(large, profile_of(*PROFILES["p3"]))
    np.testing.assert_array_equal(
        made, np.tile(to_srgb(IMAGE, profile_of(*PROFILES["p3"])), (20, 20, 1))
    )


def test_what_cannot_be_applied_says_why():
    good = profile_of(P3, SRGB_CURVE)
    broken = {
        "broken": good[:130],
        "broken colour": good.replace(b"para", b"nope"),
        "without rTRC": good.replace(b"rTRC", b"A2B0"),
        "of CMYK values": good.replace(b"RGB ", b"CMYK"),
        "of unknown values": bytes(200),
        "whose primaries are no colours": profile_of(((8.0, 0, 0), *P3[1:]), SRGB_CURVE),
    }
    for words, profile in broken.items():
        with pytest.raises(UnknownProfile, match=words):
            to_srgb(IMAGE, profile)


@pytest.mark.parametrize(
    ("kind", "values"),
    [(1, (2.2, 0, 1)), (2, (2.2, 0, 0, 0)), (0, (-1,)), (3, (9999, 9999, 0, 1, 0))],
)
def test_a_curve_that_cannot_be_computed_is_a_broken_profile(kind, values):
    curve = struct.pack(
        f">4s4xHxx{len(values)}i", b"para", kind, *(round(65536 * v) for v in values)
    )
    with pytest.raises(UnknownProfile, match="broken"):
        to_srgb(IMAGE, profile_of(P3, curve))
