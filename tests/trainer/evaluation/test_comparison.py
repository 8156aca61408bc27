"""Comparison sheets of `eval-sr --strips`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from shards.images import resize
from shards.images.photos import read_photo
from tests.trainer.evaluation.support import picture, run_eval
from trainer.evaluation.comparison import (
    CAPTION_HEIGHT,
    ERROR_LEVELS,
    GAP,
    MAX_SIDE,
    draw_error_map,
    split_comparison_sheet,
)
from trainer.evaluation.metrics import PROTOCOL, luma


def test_a_model_stands_beside_bicubic_and_strips_show_both(odd_pictures, tmp_path, model):
    arguments = ["--hr", odd_pictures, "--model", model, "--strips", tmp_path / "strips"]
    shown = run_eval(*arguments).stdout
    assert "bicubic" in shown
    assert "small" in shown
    assert PROTOCOL in shown
    strip = read_photo(tmp_path / "strips/Mine-p0.png").pixels
    hr = np.ascontiguousarray(read_photo(odd_pictures / "p0.png").pixels[:128, :120])
    low = resize.downscale(hr, scale=4)
    lr, bicubic, _, truth = split_comparison_sheet(strip, columns=4)
    np.testing.assert_array_equal(lr[::4, ::4], low)
    np.testing.assert_array_equal(bicubic, resize.upscale(low, scale=4))
    np.testing.assert_array_equal(truth, hr)


def test_baselines_are_pils_lanczos_and_repeated_pixels():
    hr = read_photo(picture("Mine/HR/p.png")).pixels
    run_eval("--hr", "Mine/HR", "--baseline=lanczos", "--baseline=nearest", "--strips", "strips")
    lr, _, lanczos, nearest, _ = split_comparison_sheet(
        read_photo(Path("strips/Mine-p.png")).pixels, columns=5
    )
    np.testing.assert_array_equal(lr, nearest)
    low = Image.fromarray(resize.downscale(hr, scale=4))
    wanted = np.asarray(low.resize((44, 40), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(lanczos, wanted)


def test_error_maps_have_one_scale():
    hr = np.full((40, 44, 3), 100, np.uint8)
    for levels, colour in ((0, 0), (10, 10 / 32), (32, 1), (90, 1)):
        sr = hr + np.uint8(levels)
        difference = float(np.abs(luma(sr) - luma(hr)).mean())
        shown = draw_error_map(sr, hr)[0, 0]
        index = np.uint8(min(255, 255 * difference / ERROR_LEVELS))
        wanted = cv2.applyColorMap(np.full((1, 1), index), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
        np.testing.assert_array_equal(shown, wanted)
        assert abs(float(index) / 255 - colour) < 0.16  # luma is 219/255 of grey


def test_strips_of_two_sets_of_one_name_do_not_replace_each_other():
    picture("a/Mine/HR/p.png")
    picture("b/Mine/HR/p.png")
    both = ["--hr", "a/Mine/HR", "--hr", "b/Mine/HR"]
    assert len(json.loads(run_eval(*both, "--json").stdout)["rows"]) == 2
    failed = run_eval(*both, "--strips", "strips", code=2)
    assert "two test sets are named Mine" in failed.stderr.splitlines()[-1]
    assert not Path("strips").exists()


def test_a_strip_shows_the_middle_of_a_large_picture():
    hr = read_photo(picture("Mine/HR/p.png", 400, 520)).pixels
    run_eval("--hr", "Mine/HR", "--strips", "strips")
    strip = read_photo(Path("strips/Mine-p.png")).pixels
    assert strip.shape == (CAPTION_HEIGHT + 2 * MAX_SIDE + GAP, 3 * MAX_SIDE + 2 * GAP, 3)
    *_, truth = split_comparison_sheet(strip, columns=3)
    np.testing.assert_array_equal(truth, hr[8:392, 68:452])
