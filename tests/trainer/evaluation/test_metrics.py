from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UsrganError
from shards.images import resize
from shards.images.photos import read_photo
from trainer.evaluation.metrics import EQUAL_PSNR, luma, mean_scores, psnr, score, ssim

DATA = Path(__file__).resolve().parents[3] / "../shared/data"
RNG = np.random.default_rng(3)
A = RNG.integers(0, 256, (40, 33, 3), dtype=np.uint8)
B = np.clip(A.astype(int) + RNG.integers(-20, 21, A.shape), 0, 255).astype(np.uint8)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(values))


def test_ssim_equals_the_papers_formula_window_by_window():
    a, b = A[..., 0].astype(float), B[..., 0].astype(float)
    assert ssim(a, b) == pytest.approx(plain_ssim(a, b), abs=1e-9)


def test_scores_are_of_the_cropped_image_on_luma_and_rgb():
    a, b = A[4:-4, 4:-4].astype(float), B[4:-4, 4:-4].astype(float)
    found = score(A, B, crop=4)
    y = [16 + (65.481 * i[..., 0] + 128.553 * i[..., 1] + 24.966 * i[..., 2]) / 255 for i in (a, b)]
    assert found.psnr_y == pytest.approx(10 * math.log10(255**2 / np.mean((y[0] - y[1]) ** 2)))
    assert found.psnr_rgb == pytest.approx(10 * math.log10(255**2 / np.mean((a - b) ** 2)))
    assert found.ssim_y == pytest.approx(plain_ssim(*y), abs=1e-9)
    channels = [plain_ssim(a[..., c], b[..., c]) for c in range(3)]
    assert found.ssim_rgb == pytest.approx(np.mean(channels), abs=1e-9)


def test_the_border_does_not_count():
    framed = B.copy()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 255, 0, 255
    assert score(framed, A, crop=4) == score(B, A, crop=4)
    assert score(framed, A, crop=3) != score(B, A, crop=3)


def test_it_makes_no_difference_which_image_is_the_truth():
    one, other = score(A, B, crop=4), score(B, A, crop=4)
    for name in ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)


def test_luma_of_black_and_white_is_16_and_235():
    assert luma(np.array([[[0, 0, 0], [255, 255, 255]]])) == pytest.approx(
        np.array([[16.0, 235.0]])
    )


def test_one_grey_level_is_48_13_db():
    assert psnr(np.full((9, 9), 7.0), np.full((9, 9), 8.0)) == pytest.approx(48.1308, abs=1e-4)


def test_equal_images_are_100_db_and_ssim_1():
    assert score(A, A, crop=0).psnr_y == EQUAL_PSNR == 100.0
    assert score(A, A, crop=0).ssim_rgb == pytest.approx(1.0)


def test_the_mean_is_over_images():
    one, two = score(A, B, crop=2), score(A, A, crop=2)
    assert mean_scores([one, two]).psnr_y == pytest.approx((one.psnr_y + 100) / 2)


@pytest.mark.parametrize(
    ("a", "b", "words"), [(A, A[:-1], "must agree"), (A[:18], A[:18], "too small to score")]
)
def test_what_cannot_be_scored_is_said(a, b, words):
    with pytest.raises(UsrganError, match=words):
        score(a, b, crop=4)


def test_a_synthetic_picture_keeps_its_score():
    """Stored from this code when it met the published anchors; guards machines without the sets."""
    y, x = np.mgrid[:96, :96]
    waves = np.stack([127 + 120 * np.sin(x * y / 300 + p) for p in (0, 1, 2)], -1).astype(np.uint8)
    made = resize.upscale(resize.downscale(waves, scale=4), scale=4)
    found = score(made, waves, crop=4)
    assert found.psnr_y == pytest.approx(41.457, abs=0.005)
    assert found.ssim_y == pytest.approx(0.9988, abs=0.0005)


@pytest.mark.parametrize(
    ("name", "db", "similarity"), [("Set5", 28.43, 0.8111), ("Set14", 26.09, 0.7050)]
)
def test_bicubic_meets_the_published_numbers(name, db, similarity):
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not beside the checkout")
    scores = []
    for path in sorted((DATA / name / "HR").iterdir()):
        hr = np.ascontiguousarray(resize.crop_to_multiple(read_photo(path).pixels, scale=4))
        lr = read_photo(DATA / name / "LRx4" / path.name).pixels
        scores.append(score(resize.upscale(lr, scale=4), hr, crop=4))
    found = mean_scores(scores)
    assert found.psnr_y == pytest.approx(db, abs=0.02)
    assert found.ssim_y == pytest.approx(similarity, abs=0.001)
