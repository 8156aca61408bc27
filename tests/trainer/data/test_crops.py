"""Patches stored larger than training wants them: crops are aligned, vary, and repeat."""

from __future__ import annotations

import numpy as np

from shards.format.manifest import load_manifest
from tests.trainer.data.support import take
from trainer.data.batches import crop_pair


def test_patches_are_stored_larger_and_the_manifest_says_what_to_crop(larger):
    manifest = load_manifest(larger.location)
    assert (manifest.hr_size, manifest.crop_size, manifest.training_size) == (96, 64, 64)
    assert larger[0].hr.shape == (96, 96, 3)
    assert larger[0].lr.shape == (24, 24, 3)


def test_crops_of_hr_and_lr_lie_at_the_same_place(larger):
    corners = set()
    for batch in take(larger, 8, augment=False):
        assert batch.hr.shape == (5, 64, 64, 3)
        assert batch.lr.shape == (5, 16, 16, 3)
        for lr, hr, position in zip(batch.lr, batch.hr, batch.positions, strict=True):
            pair = larger[int(position)]
            places = [
                (left, top)
                for left in range(9)
                for top in range(9)
                if np.array_equal(
                    crop_pair(pair.lr, pair.hr, left=left, top=top, side=16)[1], hr.numpy()
                )
            ]
            assert len(places) == 1
            corners.add(places[0])
            np.testing.assert_array_equal(
                crop_pair(pair.lr, pair.hr, left=places[0][0], top=places[0][1], side=16)[0],
                lr.numpy(),
            )
    assert len(corners) > 20


def test_the_same_step_crops_the_same(larger):
    one, again = take(larger, 6, seed=4), take(larger, 2, seed=4, first_step=4)
    for first, second in zip(one[4:], again, strict=True):
        assert np.array_equal(first.hr.numpy(), second.hr.numpy())
