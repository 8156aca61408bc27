"""The second-order degradation: known kernels, the published ranges, the same bytes for the same key."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from pipeline.patches import degrade
from pipeline.patches.degrade import MARGIN, Blur, Noise, blur_kernel, describe_recipe
from pipeline.patches.extract import degradation_key
from pipeline.photos.accept import pixel_digest
from shards.images.resize import downscale
from shards.read.dataset import open_dataset
from tests.pipeline.support import make, make_photo, prep, tree

PHOTO = make_photo(3, height=192, width=192)
KEYS = [f"test {number}" for number in range(400)]


# kernels


def test_a_gaussian_kernel_is_gaussian():
    kernel = blur_kernel(Blur("gaussian", 7, (1.3, 1.3)))
    line = np.exp(-0.5 * (np.arange(-3, 4) / 1.3) ** 2)
    expected = np.outer(line, line)
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-15)


def test_anisotropic_widths_follow_the_angle():
    kernel = blur_kernel(Blur("gaussian", 21, (3.0, 0.9), angle=np.pi / 2))
    reach = np.arange(21) - 10
    spread = [float((kernel.sum(axis) * reach**2).sum()) ** 0.5 for axis in (0, 1)]
    assert spread == pytest.approx([0.9, 3.0], rel=0.02)


def test_bessel_values_match_the_tables():
    """J1(1) = 0.4400505857, J1(5) = -0.3275791376, J1(20) = 0.0668331242 (Abramowitz & Stegun 9.1)."""
    for radius, expected in ((1, 0.4400505857), (5, -0.3275791376), (20, 0.0668331242)):
        value = float(degrade._sinc_kernel(np.array([float(radius)]), 1.0)[0]) * 2 * np.pi * radius
        assert value == pytest.approx(expected, abs=1e-9)


def test_a_low_sinc_rings_at_an_edge_and_keeps_flat_areas():
    edge = np.zeros((40, 40, 3))
    edge[:, 20:] = 1
    low = degrade._apply_filter(edge, Blur("sinc", 21, (np.pi / 4,)))
    assert low.max() > 1.03
    assert low.min() < -0.03
    flat = degrade._apply_filter(np.full((40, 40, 3), 0.5), Blur("sinc", 21, (1.0,)))
    np.testing.assert_allclose(flat, 0.5, atol=1e-12)


@pytest.mark.parametrize("shape", ["gaussian", "generalized", "plateau", "sinc"])
def test_every_kernel_keeps_the_mean(shape):
    sigma = (1.0,) if shape == "sinc" else (2.0, 0.7)
    assert blur_kernel(Blur(shape, 13, sigma, 0.4, 1.7)).sum() == pytest.approx(1)


# random draws


def test_draws_cover_the_published_ranges():
    recipes = [degrade._draw_recipe(key) for key in KEYS]
    first = [recipe.first for recipe in recipes]
    second = [recipe.second for recipe in recipes]
    for orders, low, high in ((first, 0.15, 1.5), (second, 0.3, 1.2)):
        factors = [order.resize for order in orders]
        assert low <= min(factors) < low + 0.05
        assert high - 0.05 < max(factors) <= high
        assert 0.45 < np.mean([order.noise.kind == "gaussian" for order in orders]) < 0.55
        assert 0.33 < np.mean([order.noise.grey for order in orders]) < 0.47
        qualities = {order.jpeg for order in orders}
        assert (min(qualities), max(qualities)) == (30, 95)
    assert all(order.blur for order in first)
    assert 0.74 < np.mean([order.blur is not None for order in second]) < 0.86
    assert 0.74 < np.mean([recipe.sinc is not None for recipe in recipes]) < 0.86
    assert 0.42 < np.mean([recipe.jpeg_last for recipe in recipes]) < 0.58
    blurs = [order.blur for order in first if order.blur]
    assert {blur.size for blur in blurs} == set(range(7, 22, 2))
    shares = {shape: np.mean([blur.shape == shape for blur in blurs]) for shape in
              ("gaussian", "generalized", "plateau", "sinc")}  # fmt: skip
    expected = {"gaussian": 0.63, "generalized": 0.135, "plateau": 0.135, "sinc": 0.1}
    assert shares == pytest.approx(expected, abs=0.06)
    assert max(max(blur.sigma) for blur in blurs if blur.shape == "gaussian") <= 3.0


def test_noise_has_the_drawn_strength():
    grey = np.full((200, 200, 3), 0.5)
    stream = np.random.default_rng(0)
    noise = degrade._add_noise(grey, Noise("gaussian", 20.0, grey=False), stream)
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    one = degrade._add_noise(grey, Noise("gaussian", 20.0, grey=True), stream)
    assert one.shape == (200, 200, 1)
    # two photons of light: the relative deviation of a Poisson number n is n ** -0.5
    photons = degrade._add_noise(grey, Noise("poisson", 1.0, grey=False), stream)
    assert photons.std() == pytest.approx(0.5, rel=0.05)
    assert abs(photons.mean()) < 0.01


# degraded images


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_lr_has_its_size_and_resembles_the_image(scale):
    clean = downscale(PHOTO, scale=scale).astype(float)
    alike = []
    for key in KEYS[:20]:
        made = degrade.degrade(PHOTO, scale=scale, key=key)
        assert made.shape == clean.shape
        assert made.dtype == np.uint8
        alike.append(np.corrcoef(made.ravel(), clean.ravel())[0, 1])
    assert np.median(alike) > 0.8
    assert min(alike) > 0.2


def test_the_key_decides_the_bytes():
    made = [degrade.degrade(PHOTO, scale=4, key=key) for key in ("a", "a", "b")]
    degrade._draw_recipe.cache_clear()
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], degrade.degrade(PHOTO, scale=4, key="a"))
    assert not np.array_equal(made[0], made[2])


def test_a_degraded_data_set_records_its_degradation_and_is_the_same_for_all_workers(
    photos, tmp_path
):
    more = ["--degrade", "realesrgan"]
    make(photos, tmp_path / "one", *more)
    make(photos, tmp_path / "two", *more, "--workers", 2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    make(photos, tmp_path / "clean")
    split, clean = (open_dataset(tmp_path / name).split("train") for name in ("one", "clean"))
    assert len(split) == len(clean)
    words = set()
    for position in range(len(split)):
        pair, other = split[position], clean[position]
        assert (pair.info.src, pair.info.x, pair.info.y) == (
            other.info.src, other.info.x, other.info.y,
        )  # fmt: skip
        np.testing.assert_array_equal(pair.hr, other.hr)
        assert not np.array_equal(pair.lr, other.lr)
        assert isinstance(pair.info.degradation, str)
        assert len(re.findall(r"jpeg \d\d", pair.info.degradation)) == 2
        words.add(pair.info.degradation)
    assert len(words) == len(split)
    assert "degradation" not in json.loads(clean.members(0)[2])


def test_a_patch_is_degraded_with_its_margin(photos, tmp_path):
    make(photos, tmp_path / "out", "--degrade", "realesrgan")
    split = open_dataset(tmp_path / "out").split("train")
    pair = next(split[n] for n in range(len(split)) if split[n].info.src == "a.png")
    hr = cv2.imread(str(photos / "a.png"))[..., ::-1]
    key = degradation_key(0, pixel_digest(hr), pair.info.x, pair.info.y)
    assert describe_recipe(key) == pair.info.degradation
    x, y, reach = pair.info.x, pair.info.y, 4 * MARGIN
    left, top = max(0, x - reach), max(0, y - reach)
    whole = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    made = degrade.degrade(whole[top : y + 64 + reach, left : x + 64 + reach], scale=4, key=key)
    row, column = (y - top) // 4, (x - left) // 4
    np.testing.assert_array_equal(made[row : row + 16, column : column + 16], pair.lr)


@pytest.mark.parametrize("clash", [["--kernel", "matlab"], ["--lr-from", "patch"]])
def test_contradicting_degradation_options_are_refused(photos, tmp_path, clash):
    where = ["--src", photos, "--out", tmp_path / "out", "--degrade", "realesrgan"]
    assert "--degrade realesrgan" in prep(*where, *clash, code=2).stderr
