"""PSNR and SSIM as the MATLAB scripts of super-resolution papers compute them.

PSNR: 10 log10(255² / MSE). SSIM: Wang et al. 2004, 11×11 Gaussian window with σ 1.5, K1 0.01, K2 0.03,
valid region only. Y is BT.601 luma (16..235) in floating point, not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shards.errors import UsrganError
from shards.format.png import RGB8

PROTOCOL = (
    "8-bit images; border of `scale` pixels cropped; Y = BT.601 luma in float64;"
    " SSIM 11x11 Gaussian, sigma 1.5, valid region; RGB: PSNR over all channels, SSIM mean of three;"
    " mean over images; PSNR of equal images counts 100 dB"
)
EQUAL_PSNR = 100.0
"""PSNR of two equal images in dB; the formula gives infinity, which JSON cannot hold."""
WINDOW = 11
"""Side of the SSIM window, in pixels."""
_Y = np.array([65.481, 128.553, 24.966]) / 255
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM (at most 1), on luma and on RGB."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float


def score(sr: RGB8, hr: RGB8, *, crop: int) -> Scores:
    """Return PSNR and SSIM of an upscaled image.

    Args:
        sr: upscaled image [h w 3], RGB.
        hr: ground truth [h w 3], RGB.
        crop: border to leave out at each side, in pixels; by convention the scale.

    Raises:
        UsrganError: the sizes differ, or the image is smaller than one SSIM window.
    """
    if sr.shape != hr.shape:
        raise UsrganError(
            f"the upscaled image is {_format_size(sr)}, the ground truth {_format_size(hr)}; they must agree"
        )
    if min(hr.shape[:2]) < WINDOW + 2 * crop:
        raise UsrganError(
            f"an image of {_format_size(hr)} is too small to score; use one of at least"
            f" {WINDOW + 2 * crop} pixels a side"
        )
    inside = slice(crop, -crop or None)
    a, b = (np.asarray(image[inside, inside], np.float64) for image in (sr, hr))
    ya, yb = luma(a), luma(b)
    channels = [ssim(a[..., c], b[..., c]) for c in range(3)]
    return Scores(psnr(ya, yb), ssim(ya, yb), psnr(a, b), float(np.mean(channels)))


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """Return the mean of each score over images."""
    rows = np.array([(s.psnr_y, s.ssim_y, s.psnr_rgb, s.ssim_rgb) for s in scores])
    return Scores(*(float(value) for value in rows.mean(axis=0)))


def luma(rgb: npt.NDArray[Any]) -> Plane:
    """Return the BT.601 luma [h w] in 16..235 of RGB [h w 3] in 0..255."""
    return np.asarray(16 + np.asarray(rgb, np.float64) @ _Y)


def psnr(a: Plane, b: Plane) -> float:
    """Return the peak signal-to-noise ratio in dB of two arrays with values in 0..255."""
    error = float(np.mean((a - b) ** 2))
    return min(EQUAL_PSNR, 10 * math.log10(255**2 / error)) if error else EQUAL_PSNR


def ssim(a: Plane, b: Plane) -> float:
    """Return the structural similarity of two planes [h w] with values in 0..255."""
    mean_a, mean_b = _blur(a), _blur(b)
    product = mean_a * mean_b
    squares = mean_a**2 + mean_b**2
    covariance = _blur(a * b) - product
    variances = _blur(a * a) + _blur(b * b) - squares
    similarity = (2 * product + _C1) * (2 * covariance + _C2)
    return float(np.mean(similarity / ((squares + _C1) * (variances + _C2))))


def _blur(plane: Plane) -> Plane:
    """Return the plane filtered with the Gaussian window, valid region only."""
    kernel = cv2.getGaussianKernel(WINDOW, _SIGMA, cv2.CV_64F)
    edge = WINDOW // 2
    blurred = np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel), np.float64)
    return blurred[edge:-edge, edge:-edge]


def _format_size(image: RGB8) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
