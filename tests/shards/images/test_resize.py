from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.images import resize
from shards.images.photos import read_photo

SET5 = Path(__file__).resolve().parents[3] / "../shared/data/Set5"


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """Apply MATLAB's algorithm literally: one weight per pair of output and input row."""
    for axis in (0, 1):
        length = image.shape[axis]
        places = (np.arange(length // scale) + 0.5) * scale - 0.5
        reach = np.arange(-2 * scale - 2, 2 * scale + 3)
        inputs = np.floor(places)[:, None].astype(int) + reach
        x = np.abs(places[:, None] - inputs) / scale
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x <= 1, near, np.where(x <= 2, far, 0))
        weights /= weights.sum(axis=1, keepdims=True)
        mirrored = np.concatenate((np.arange(length), np.arange(length)[::-1]))[
            inputs % (2 * length)
        ]
        moved = np.moveaxis(image, axis, 0).astype(float)
        made = np.einsum("ok,okwc->owc", weights, moved[mirrored])
        image = np.moveaxis(np.floor(made + 0.5).clip(0, 255).astype(np.uint8), 0, axis)
    return image


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("cells", [(1, 1), (3, 7), (20, 31)])
def test_the_matlab_kernel_follows_its_algorithm(scale, cells):
    image = noise(cells[0] * scale, cells[1] * scale)
    np.testing.assert_array_equal(
        resize.downscale(image, scale=scale, kernel="matlab"), imresize(image, scale)
    )


def test_the_matlab_kernel_equals_matlab_on_set5():
    if not SET5.is_dir():
        pytest.skip("Set5 is not beside the checkout")
    hrs, lrs = (sorted((SET5 / name).iterdir()) for name in ("HR", "LRx4_matlab_sym"))
    for hr, lr in zip(hrs, lrs, strict=True):
        image = np.ascontiguousarray(resize.crop_to_multiple(read_photo(hr).pixels, scale=4))
        made = resize.downscale(image, scale=4, kernel="matlab")
        assert np.count_nonzero(made != read_photo(lr).pixels) == 0, hr


@pytest.mark.parametrize("kernel", ["pillow", "matlab"])
@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_a_flat_image_stays_flat(kernel, value):
    flat = np.full((24, 48, 3), value, np.uint8)
    assert (resize.downscale(flat, scale=4, kernel=kernel) == value).all()


def test_the_kernels_differ_slightly():
    image = noise(128, 96)
    apart = np.abs(
        resize.downscale(image, scale=4, kernel="matlab").astype(int)
        - resize.downscale(image, scale=4)
    )
    assert 0 < apart[3:-3, 3:-3].mean() < 0.5  # the kernels treat borders differently


def test_upscaling_is_pillows_bicubic():
    image = noise(9, 7)
    expected = np.asarray(Image.fromarray(image).resize((28, 36), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize.upscale(image, scale=4), expected)


def test_cropping_cuts_right_and_bottom():
    image = noise(10, 15)
    np.testing.assert_array_equal(resize.crop_to_multiple(image, scale=4), image[:8, :12])


@pytest.mark.parametrize("view", [np.s_[:, :-3], np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::2]])
def test_views_are_resized_like_their_copies(view):
    image = noise(48, 67)[view]
    image = resize.crop_to_multiple(image, scale=4)
    assert not image.flags.c_contiguous
    for function in (resize.downscale, resize.upscale):
        np.testing.assert_array_equal(
            function(image, scale=4), function(np.ascontiguousarray(image), scale=4)
        )


def test_the_matlab_kernel_needs_little_extra_memory():
    image = np.zeros((1200, 2400, 3), np.uint8)
    tracemalloc.start()
    try:
        resize.downscale(image, scale=2, kernel="matlab")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * image.nbytes, peak
