"""Levels of detail against waves whose power is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainer.evaluation.spectrum import DETAIL_NAMES, detail_metric_for


def wave(amplitude: float, cycles: float, *, side: int = 96, down: bool = False) -> np.ndarray:
    """Grey [side side+8 3] with a wave of `cycles` to a pixel."""
    across = 128 + amplitude * np.cos(2 * np.pi * cycles * np.arange(side + 8))
    plane = np.tile(across, (side, 1))
    plane = plane.T[:side, :side] if down else plane
    return np.repeat(np.rint(plane)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("cycles", "band"), [(0.06, 1), (0.19, 2), (0.31, 3), (0.44, 4)])
def test_half_a_wave_is_six_decibels_less_in_its_band(cycles, band, down):
    levels = detail_metric_for(wave(60, cycles, down=down), crop=4)(wave(30, cycles, down=down))
    assert levels[f"band_{band}"] == pytest.approx(-6.02, abs=0.1)
    assert levels["gradient"] == pytest.approx(-6.02, abs=0.1)


def test_the_truth_has_the_level_of_the_truth_and_a_flat_picture_has_none():
    hr = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert detail_metric_for(hr, crop=4)(hr) == dict.fromkeys(DETAIL_NAMES, 0.0)
    flat = detail_metric_for(hr, crop=0)(np.full_like(hr, 90))
    assert all(level < -60 for level in flat.values())
    assert all(
        np.isfinite(level) for level in detail_metric_for(flat_picture(), crop=0)(hr).values()
    )


def test_blur_takes_the_higher_frequencies_first():
    hr = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(hr, (5, 5), 0.7), np.uint8)
    levels = list(detail_metric_for(hr, crop=0)(blurred).values())[1:]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > -2 > -6 > levels[-1]


def test_what_is_cut_off_does_not_count():
    hr = np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8)
    framed = hr.copy()
    framed[:4] = framed[-4:] = 0
    framed[:, :4] = framed[:, -4:] = 0
    assert detail_metric_for(hr, crop=4)(framed) == dict.fromkeys(DETAIL_NAMES, 0.0)


def flat_picture() -> np.ndarray:
    return np.full((50, 70, 3), 90, np.uint8)
