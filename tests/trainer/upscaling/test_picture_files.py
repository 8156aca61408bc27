"""Files of upscaled images: colour profile, transparency, animation, formats."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.format import png
from shards.images.photos import read_photo
from tests.trainer.upscaling.support import SMALL, run_upscale


def test_transparent_pixels_are_refused_in_words_that_help_here(model):
    rgba = np.dstack([SMALL, np.full(SMALL.shape[:2], 128, np.uint8)])
    Path("a.png").write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    result = run_upscale("a.png", "-o", "big.png", "--model", model, "--json", code=1)
    (entry,) = json.loads(result.stdout)["pictures"]
    assert "transparent" in entry["reason"]
    assert "--alpha" not in result.output
    assert not Path("big.png").exists()


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_colour_profile_goes_along(model, suffix, grey):
    profile = (bytes(16) + (b"GRAY" if grey else b"RGB ")).ljust(70_001, b"\x07")
    stored = SMALL[..., 0] if grey else SMALL
    content = cv2.imencode(".png", stored)[1].tobytes()
    body = b"iCCPx\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    Path("plain.png").write_bytes(content)
    Path("a.png").write_bytes(content[:33] + chunk + content[33:])
    if grey and suffix == ".webp":
        refused = run_upscale("a.png", "-o", "big.webp", "--model", model, code=1)
        assert "a.png: has a grey colour profile" in refused.stderr
        return
    for name, out in (("plain.png", "without"), ("a.png", "with")):
        run_upscale(name, "-o", out + suffix, "--model", model)
    made, without = (read_photo(Path(out + suffix)) for out in ("with", "without"))
    assert (made.icc, made.grey) == (profile, grey and suffix != ".webp")
    assert without.icc == b""
    np.testing.assert_array_equal(made.pixels, without.pixels)


def test_a_profile_of_other_pixels_than_are_written_is_left_out(model):
    inks = cv2.imencode(".jpg", SMALL)[1].tobytes()
    profile = b"ICC_PROFILE\0\1\1" + (bytes(16) + b"CMYK").ljust(200, b"\0")
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(profile)) + profile
    Path("a.jpg").write_bytes(inks[:2] + segment + inks[2:])
    run_upscale("a.jpg", "-o", "big.png", "--model", model)
    assert read_photo(Path("a.jpg")).icc
    assert read_photo(Path("big.png")).icc == b""


def test_a_still_of_an_animation_is_said_to_be_one(model):
    frames = cv2.Animation()
    frames.frames, frames.durations = [SMALL, SMALL[::-1].copy()], np.array([90, 90])
    Path("a.webp").write_bytes(cv2.imencodeanimation(".webp", frames)[1].tobytes())
    result = run_upscale("a.webp", "-o", "big.png", "--model", model, "--json")
    assert "warning: a.webp: first frame of an animation" in result.stderr
    assert json.loads(result.stdout)["pictures"][0]["reason"] == "first frame of an animation"


def test_what_a_format_cannot_hold_is_a_failure_that_names_the_picture(model):
    Path("wide.png").write_bytes(png.encode_rgb(np.zeros((1, 4100, 3), np.uint8)))
    failed = run_upscale("wide.png", "-o", "wide.webp", "--model", model, code=1)
    assert "wide.png: cannot be written as .webp; write .png" in failed.stderr
    assert not Path("wide.webp").exists()
