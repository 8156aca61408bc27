"""Which folders, images and shards `eval-sr` accepts as test sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.format import png
from shards.images import resize
from shards.images.photos import read_photo
from tests.trainer.evaluation.support import dump, picture, run_eval
from tests.trainer.support import make_patch


@pytest.mark.parametrize("suffix", ["", "x4"])
def test_given_lr_pictures_are_used(odd_pictures, tmp_path, suffix):
    (tmp_path / "LR").mkdir()
    for path in sorted(odd_pictures.iterdir()):
        hr = np.ascontiguousarray(resize.crop_to_multiple(read_photo(path).pixels, scale=4))
        dark = resize.downscale(hr, scale=4) // 2
        (tmp_path / "LR" / f"{path.stem}{suffix}.png").write_bytes(png.encode_rgb(dark))
    ours = json.loads(run_eval("--hr", odd_pictures, "--json").stdout)["rows"][0]
    given = json.loads(run_eval("--hr", odd_pictures, "--lr", tmp_path / "LR", "--json").stdout)
    assert given["rows"][0]["psnr_y"] < ours["psnr_y"] - 3


def test_held_out_patches_are_a_set(tiny_shards):
    rows = json.loads(run_eval("--shards", tiny_shards, "--json").stdout)["rows"]
    assert rows[0]["images"] == 8


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], "--hr", 2),
        (["--hr", "nowhere"], "nowhere", 2),
        (["--hr", "Mine/HR", "--lr", "empty"], "has no images", 2),
        (["--hr", "Mine/HR", "--lr", "other"], "has no image for p0.png", 2),
        (["--hr", "Mine/HR", "--lr", "Mine/HR"], "at x4 needs", 2),
        (["--hr", "Mine/HR", "--model", "no.safetensors"], "no.safetensors", 2),
        (["--hr", "Mine/HR", "--lr", "a", "--lr", "b"], "2 given for 1", 2),
        (["--hr", "broken"], "broken/x.png: is empty", 2),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    odd_pictures, tmp_path, monkeypatch, arguments, words, code
):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("empty", None), ("other", "z.png"), ("broken", "x.png")):
        Path(folder).mkdir()
        if name:
            Path(folder, name).write_bytes(b"")
    assert words in run_eval(*arguments, code=code).stderr.splitlines()[-1]


def test_grey_and_deep_pictures_are_scored_and_told():
    dump("Mine/HR/grey.png", make_patch(1)[..., 0])
    dump("Mine/HR/deep.png", make_patch(2).astype(np.uint16) * 257)
    dump("Mine/HR/opaque.png", np.dstack([make_patch(3), np.full((128, 128), 255, np.uint8)]))
    found = json.loads(run_eval("--hr", "Mine/HR", "--json").stdout)
    assert found["rows"][0]["images"] == 3
    assert found["sets"][0]["notes"] == [
        "grey, scored as RGB of three equal channels: grey",
        "16 bit, reduced to 8: deep",
    ]
    assert "scored as RGB of three equal channels: grey" in run_eval("--hr", "Mine/HR").stdout


def test_pictures_that_were_turned_are_told():
    turned = Image.Exif()
    turned[0x112] = 3
    exif = b"Exif\0\0" + turned.tobytes().removeprefix(b"Exif\0\0")
    jpeg = cv2.imencode(".jpg", make_patch(1))[1].tobytes()
    Path("Mine/HR").mkdir(parents=True)
    content = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    Path("Mine/HR/a.jpg").write_bytes(content)
    assert "EXIF orientation 3 applied: a" in run_eval("--hr", "Mine/HR").stdout.splitlines()


def test_what_cannot_be_scored_is_one_line_and_nothing_is_written():
    picture("Mine/HR/a.png", 64, 64)
    clear = np.dstack([make_patch(1), np.full((128, 128), 9, np.uint8)])
    for image, words in (
        (clear, "HR/z.png: has transparent pixels; flatten it"),
        (
            make_patch(1)[:20, :18],
            "HR/z.png: 18x20 is too small to score at x4; use images of at least 20 pixels a side",
        ),
    ):
        dump("Mine/HR/z.png", image)
        failed = run_eval("--hr", "Mine/HR", "--strips", "strips", code=2)
        assert words in failed.stderr.splitlines()[-1]
        assert not Path("strips").exists()
    dump("Mine/HR/z.png", make_patch(1))
    dump("LR/a.png", make_patch(1)[:16, :16])
    for image, words in (
        (
            make_patch(1)[:32, :32, 0],
            "LR/z.png: is grey, but z.png is in colour; use LR in colour",
        ),
        (make_patch(1)[:32, :31], "LR/z.png: is 31x32, but z.png at x4 needs 32x32"),
    ):
        dump("LR/z.png", image)
        failed = run_eval("--hr", "Mine/HR", "--lr", "LR", "--strips", "strips", code=2)
        assert words in failed.stderr.splitlines()[-1]
        assert not Path("strips").exists()


def test_shards_of_another_scale_are_refused_with_the_option_that_would_do(tiny_shards):
    line = run_eval("--shards", tiny_shards, "--scale", 2, code=2).stderr.splitlines()[-1]
    assert "has scale 4, not 2; use models of that scale, or without models --scale 4" in line


@pytest.mark.parametrize("size", [(2, 50), (50, 3), (3, 3), (18, 50)])
def test_a_picture_thinner_than_a_window_is_named(size):
    picture("Mine/HR/thin.png", *size)
    line = run_eval("--hr", "Mine/HR", code=2).stderr.splitlines()[-1]
    assert "thin" in line
    assert "too small to score" in line
    assert "a bug" not in line


def test_a_name_that_is_not_utf8_is_escaped():
    os.makedirs("Mine/HR")
    odd = os.fsdecode(b"Mine/HR/caf\xe9.png")
    Path(odd).write_bytes(picture("p.png").read_bytes())
    rows = json.loads(run_eval("--hr", "Mine/HR", "--json").stdout)["rows"]
    assert rows[0]["per_image"][0]["image"] == r"caf\xe9"
    os.rename("Mine", os.fsdecode(b"Min\xe9"))
    assert r"Min\xe9" in run_eval("--hr", os.fsdecode(b"Min\xe9/HR")).stdout


def test_notes_above_a_table_are_one_line_whatever_a_picture_is_called():
    dump("Mine/HR/two\nlines.png", make_patch(1)[..., 0])
    Path(os.fsdecode(b"Mine/LRx4 \xe9")).mkdir()
    low = make_patch(1)[::4, ::4, 0]
    dump(os.fsdecode(b"Mine/LRx4 \xe9/two\nlines.png"), low)
    shown = run_eval("--hr", "Mine/HR", "--lr", os.fsdecode(b"Mine/LRx4 \xe9")).stdout.splitlines()
    assert shown[0].endswith(r"LR: Mine/LRx4 \xe9  ")
    assert shown[1] == r"grey, scored as RGB of three equal channels: two\nlines"


def test_two_pictures_of_one_stem_are_refused():
    picture("Mine/HR/p.png")
    Path("Mine/HR/p.jpg").write_bytes(cv2.imencode(".jpg", make_patch(2))[1].tobytes())
    line = run_eval("--hr", "Mine/HR", code=2).stderr.splitlines()[-1]
    assert "p.jpg" in line
    assert "p.png" in line
