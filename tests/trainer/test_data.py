from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from shards import resize
from shards.errors import UsageError
from shards.reader import open_dataset
from trainer.data import DataConfig, batches, pass_order, steps_per_pass, to_float, turned


def order(**changes: object) -> np.ndarray:
    return pass_order(
        **{"samples": 1000, "dataset_sha256": "ab", "seed": 0, "number": 0, **changes}
    )[0]


def take(
    shards,
    count: int,
    *,
    first_step: int = 0,
    workers: int = 0,
    augment: bool = True,
    seed: int = 0,
):
    split = open_dataset(shards).split("train")
    stream = batches(
        split, seed=seed, batch_size=5, first_step=first_step,
        config=DataConfig(workers=workers, augment=augment),
    )  # fmt: skip
    taken = list(itertools.islice(stream, count))
    stream.close()
    split.close()
    return taken


def equal(one, two) -> bool:
    return all(
        torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr) and (a.positions == b.positions).all()
        for a, b in zip(one, two, strict=True)
    )


def test_a_pass_is_a_permutation():
    assert sorted(order()) == list(range(1000))


@pytest.mark.parametrize("changes", [{"number": 1}, {"seed": 1}, {"dataset_sha256": "cd"}])
def test_another_pass_seed_or_data_set_is_another_order(changes):
    assert (order() == order()).all()
    assert (order() == order(**changes)).mean() < 0.05


def test_turns_are_spread_over_all_eight_and_free_of_the_order():
    places, turns = pass_order(8000, dataset_sha256="ab", seed=0, number=0)
    counts = np.bincount(turns, minlength=8)
    assert counts.min() > 850
    first_half = np.bincount(turns[places[:4000]], minlength=8)
    assert np.abs(first_half - counts / 2).max() < 150


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(tiny_shards, workers):
    assert equal(take(tiny_shards, 11), take(tiny_shards, 11, workers=workers))


@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_starting_at_a_step_equals_running_up_to_it(tiny_shards, step):
    assert equal(
        take(tiny_shards, 11)[step:], take(tiny_shards, 11 - step, first_step=step, workers=2)
    )


def test_a_sample_comes_at_most_once_in_a_pass(tiny_shards):
    positions = np.concatenate([batch.positions for batch in take(tiny_shards, 4)])
    assert len(set(positions)) == len(positions) == 20


def test_batches_hold_the_stored_pairs(tiny_shards):
    split = open_dataset(tiny_shards).split("train")
    for batch in take(tiny_shards, 4, augment=False):
        for lr, hr, position in zip(batch.lr, batch.hr, batch.positions, strict=True):
            np.testing.assert_array_equal(lr, split[int(position)].lr)
            np.testing.assert_array_equal(hr, split[int(position)].hr)


def test_lr_and_hr_are_turned_alike(tiny_shards):
    seen = set()
    split = open_dataset(tiny_shards).split("train")
    for batch in take(tiny_shards, 12):
        for lr, hr, position in zip(
            batch.lr.numpy(), batch.hr.numpy(), batch.positions, strict=True
        ):
            small = resize.downscale(np.ascontiguousarray(hr), scale=4)
            assert np.abs(small.astype(int) - lr).mean() < 0.5  # other turns: above 20
            stored = split[int(position)].hr
            seen |= {t for t in range(8) if np.array_equal(turned(stored, t), hr)}
    assert len(seen) == 8


def test_the_eight_turns_differ():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert len({turned(image, turn).tobytes() for turn in range(8)}) == 8


def test_too_few_patches_for_a_batch_are_an_error():
    with pytest.raises(UsageError, match="hold only 3"):
        steps_per_pass(3, 4)


def test_bytes_become_floats_channels_last():
    images = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    floats = to_float(images, torch.device("cpu"))
    assert floats.shape == (1, 3, 1, 1)
    torch.testing.assert_close(floats.flatten(), torch.tensor([0.0, 128 / 255, 1.0]))
    assert to_float(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.device("cpu")).is_contiguous(
        memory_format=torch.channels_last
    )
