from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.options import Options, check_options
from pipeline.patches.extract import (
    PATCH_AREAS_PER_PHOTO,
    choose_positions,
    extract_patches,
    measure_detail,
    patch_rank,
)
from pipeline.photos.accept import AcceptedPhoto, compute_luma, pixel_digest
from shards.errors import UsageError
from shards.format import png
from shards.images import resize
from tests.pipeline.support import make_photo


def accepted_photo(photo: np.ndarray) -> AcceptedPhoto:
    return AcceptedPhoto(photo, compute_luma(photo), None, "", pixel_digest(photo), 1.0, 1.0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_lr_is_pillows_antialiased_bicubic_of_the_whole_photo(scale):
    photo = make_photo(1, height=301, width=397)
    options = Options(hr_size=24 * scale, scale=scale, patches_per_image=30)
    cropped = photo[: 301 // scale * scale, : 397 // scale * scale]
    size = (cropped.shape[1] // scale, cropped.shape[0] // scale)
    whole = np.asarray(
        Image.fromarray(np.ascontiguousarray(cropped)).resize(size, Image.Resampling.BICUBIC)
    )
    cuts = list(extract_patches(accepted_photo(photo), options))
    assert len(cuts) == 30 if scale < 8 else cuts
    for cut in cuts:
        assert cut.x % scale == cut.y % scale == 0
        np.testing.assert_array_equal(
            png.decode_rgb(cut.hr), photo[cut.y :, cut.x :][: 24 * scale, : 24 * scale]
        )
        np.testing.assert_array_equal(
            png.decode_rgb(cut.lr), whole[cut.y // scale :, cut.x // scale :][:24, :24]
        )


def test_the_matlab_kernel_also_downscales_the_whole_photo():
    photo = make_photo(5, height=200, width=240)
    whole = resize.downscale(photo, scale=4, kernel="matlab")
    for cut in extract_patches(
        accepted_photo(photo), Options(patches_per_image=5, kernel="matlab")
    ):
        expected = whole[cut.y // 4 :, cut.x // 4 :][:32, :32]
        np.testing.assert_array_equal(png.decode_rgb(cut.lr), expected)


def test_lr_from_patch_depends_only_on_the_patch():
    photo = make_photo(2)
    options = Options(patches_per_image=4, lr_from="patch")
    for cut in extract_patches(accepted_photo(photo), options):
        patch = Image.fromarray(png.decode_rgb(cut.hr))
        alone = np.asarray(patch.resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(png.decode_rgb(cut.lr), alone)


@pytest.mark.parametrize(
    ("width", "height"), [(128, 128), (129, 131), (132, 128), (640, 480), (2040, 1356)]
)
def test_positions_are_distinct_aligned_and_inside(width, height):
    options = Options()
    width, height = width - width % 4, height - height % 4
    positions = choose_positions(width, height, "photo", options)
    assert len(set(positions)) == len(positions)
    assert len(positions) <= max(1, PATCH_AREAS_PER_PHOTO * width * height // 128**2)
    assert all(0 <= x <= width - 128 and 0 <= y <= height - 128 for x, y in positions)
    assert all(x % 4 == y % 4 == 0 for x, y in positions)
    assert positions == choose_positions(width, height, "photo", options)
    if width > 200:
        assert positions != choose_positions(width, height, "other", options)
        assert {x for x, _ in positions} > {0}


def test_a_large_photo_gives_the_requested_number_of_patches():
    assert len(choose_positions(2040, 1356, "photo", Options())) == 200


def test_random_positions_reach_the_edges():
    positions = choose_positions(144, 144, "photo", Options(patches_per_image=25))
    everywhere = choose_positions(144, 144, "photo", Options(patches_per_image=25, hr_size=128))
    assert positions == everywhere
    all_places = {
        xy for seed in range(20) for xy in choose_positions(144, 144, f"p{seed}", Options())
    }
    assert {0, 16} <= {x for x, _ in all_places}


def test_a_grid_covers_every_pixel():
    options = Options(patches_per_image=0, grid=96)
    covered = np.zeros((300, 420), bool)
    for x, y in choose_positions(420, 300, "photo", options):
        covered[y : y + 128, x : x + 128] = True
    assert covered.all()


def test_rank_depends_only_on_seed_photo_and_position():
    assert patch_rank(0, "p", 4, 8) == patch_rank(0, "p", 4, 8)
    others = {
        patch_rank(1, "p", 4, 8),
        patch_rank(0, "q", 4, 8),
        patch_rank(0, "p", 8, 4),
        patch_rank(0, "p", 4, 8),
    }
    assert len(others) == 4
    assert all(0 <= value < 2**64 for value in others)


def test_pixel_digest_depends_on_shape_and_pixels():
    image = make_photo(3, height=40, width=60)
    turned = np.ascontiguousarray(image.reshape(60, 40, 3))
    changed = image.copy()
    changed[3, 4, 1] ^= 1
    assert len({pixel_digest(i) for i in (image, turned, changed)}) == 3


def test_detail_agrees_with_numpy():
    luma = make_photo(4)[..., 1]
    spread, gradient = measure_detail(luma)
    steps = [np.abs(np.diff(luma.astype(float), axis=axis)) for axis in (0, 1)]
    assert spread == pytest.approx(luma.std(), abs=1e-3)
    assert gradient == pytest.approx(np.concatenate([s.ravel() for s in steps]).mean(), abs=1e-3)
    assert measure_detail(np.full((16, 16), 77, np.uint8)) == (0.0, 0.0)


@pytest.mark.parametrize("changed", [0, 1, 9])
def test_detail_of_almost_flat_patches_uses_exact_sums(changed):
    around = np.zeros((140, 300), np.uint8)
    patch = around[7:135, 30:158]
    for grey in range(255):
        patch[:] = grey
        patch.flat[: 100 * changed : 100] += 1
        variance = changed / patch.size * (1 - changed / patch.size)
        assert measure_detail(patch)[0] == round(variance**0.5, 3), grey


def flat_photo() -> np.ndarray:
    """Return a photo with detail on the left and a ramp of one grey level on the right."""
    photo = make_photo(6, height=256, width=1024)
    photo[:, 512:] = np.linspace(100, 101, 512).astype(np.uint8)[:, None]
    return photo


def test_flat_patches_are_thinned_and_the_others_are_unchanged():
    photo = flat_photo()
    cuts = {}
    for share in (1.0, 0.3, 0.0):
        options = Options(hr_size=32, patches_per_image=400, keep_flat=share)
        cuts[share] = set(extract_patches(accepted_photo(photo), options))
    flat = {cut for cut in cuts[1.0] if cut.luma_std < 4}
    assert len(flat) > 100
    assert cuts[0.0] == cuts[1.0] - flat
    assert cuts[0.3] - flat == cuts[0.0]
    assert cuts[0.3] <= cuts[1.0]
    assert 0.2 < len(cuts[0.3] & flat) / len(flat) < 0.4


def test_patches_below_min_detail_are_skipped():
    options = Options(hr_size=32, patches_per_image=400, keep_flat=1.0, min_detail=2.0)
    cuts = list(extract_patches(accepted_photo(flat_photo()), options))
    assert cuts
    assert min(cut.luma_std for cut in cuts) >= 2.0


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"hr_size": 130}, "--hr-size"), ({"hr_size": 16}, "--hr-size"), ({"scale": 5}, "--scale"),
     ({"grid": 50}, "--grid"),
     ({"val_fraction": 1.0}, "--val-fraction"), ({"max_megapixels": 0.0}, "--max-megapixels")],
)  # fmt: skip
def test_invalid_options_are_named(changes, option):
    with pytest.raises(UsageError, match=option):
        check_options(Options(**changes))
