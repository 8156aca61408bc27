"""Batches are a function of (data, seed, step), whoever decodes them and wherever one starts."""

from __future__ import annotations

import shutil
import threading
from itertools import islice

import numpy as np
import pytest
import torch

from shards import resize
from shards.errors import DamagedData, UsageError
from shards.reader import open_dataset
from trainer.data import (
    DataConfig,
    batches,
    pass_order,
    steps_per_pass,
    to_float,
    turned,
)

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def train(tiny_shards):
    return open_dataset(tiny_shards).split("train")


def take(split, count, *, first_step=0, seed=0, batch_size=5, workers=0, augment=True):
    config = DataConfig(workers=workers, augment=augment)
    stream = batches(split, seed=seed, batch_size=batch_size, first_step=first_step, config=config)
    found = list(islice(stream, count))
    stream.close()
    return found


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert torch.equal(one.lr, other.lr)
        assert torch.equal(one.hr, other.hr)


# the order


@pytest.mark.parametrize("samples", [1, 2, 24, 1000])
def test_a_pass_is_a_permutation_with_a_turn_for_each_sample(samples):
    order, turns = pass_order(samples, dataset_sha256=DIGEST, seed=3, number=5)
    assert sorted(order.tolist()) == list(range(samples))
    assert turns.shape == (samples,)
    assert set(turns.tolist()) <= set(range(8))


def test_data_seed_and_pass_each_give_another_order_and_other_turns():
    settings = {"dataset_sha256": DIGEST, "seed": 3, "number": 5}
    order, turns = pass_order(1000, **settings)
    for change in ({"dataset_sha256": "cd" * 32}, {"seed": 4}, {"number": 6}):
        other_order, other_turns = pass_order(1000, **(settings | change))
        assert (order == other_order).mean() < 0.01
        assert 0.05 < (turns == other_turns).mean() < 0.2  # an eighth by chance
    again, again_turns = pass_order(1000, **settings)
    assert np.array_equal(order, again)
    assert np.array_equal(turns, again_turns)


def test_seed_and_pass_do_not_run_into_each_other():
    one, _ = pass_order(100, dataset_sha256=DIGEST, seed=1, number=12)
    other, _ = pass_order(100, dataset_sha256=DIGEST, seed=11, number=2)
    assert not np.array_equal(one, other)


def test_all_turns_are_as_frequent_and_say_nothing_about_the_place_in_the_order():
    order, turns = pass_order(80_000, dataset_sha256=DIGEST, seed=0, number=0)
    counts = np.bincount(turns, minlength=8)
    assert np.abs(counts - 10_000).max() < 400
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    assert abs(np.corrcoef(place, turns)[0, 1]) < 0.02
    assert abs(np.corrcoef(place, np.arange(len(order)))[0, 1]) < 0.02


def test_the_order_is_the_one_of_the_first_release():
    """A change here makes every saved run go on with other data than it began with."""
    order, turns = pass_order(8, dataset_sha256=DIGEST, seed=0, number=0)
    assert (order.tolist(), turns.tolist()) == ([2, 4, 0, 1, 7, 3, 6, 5], [0, 4, 1, 0, 4, 5, 1, 2])


# batches


def test_a_pass_shows_every_sample_once_and_leaves_the_rest(train):
    found = take(train, 4, augment=False)  # 24 samples: 4 batches of 5
    seen = np.concatenate([batch.positions for batch in found])
    assert len(set(seen.tolist())) == 20
    order, _ = pass_order(24, dataset_sha256=train.manifest.dataset_sha256, seed=0, number=0)
    assert np.array_equal(seen, order[:20])


def test_the_next_pass_begins_anew_with_its_own_order(train):
    found = take(train, 5, first_step=4)
    wanted = [
        pass_order(24, dataset_sha256=train.manifest.dataset_sha256, seed=0, number=n)[0]
        for n in (1, 2)
    ]
    seen = np.concatenate([batch.positions for batch in found])
    assert np.array_equal(seen, np.concatenate((wanted[0][:20], wanted[1][:5])))


def test_over_passes_every_sample_comes_up(train):
    seen = np.concatenate([batch.positions for batch in take(train, 8 * 4)])
    assert set(seen.tolist()) == set(range(24))


def test_a_batch_holds_the_pairs_of_its_positions_turned_alike(train):
    digest = train.manifest.dataset_sha256
    for number, batch in enumerate(take(train, 6, seed=9)):
        _, turns = pass_order(24, dataset_sha256=digest, seed=9, number=number // 4)
        assert batch.lr.shape == (5, 32, 32, 3)
        assert batch.hr.shape == (5, 128, 128, 3)
        assert batch.lr.dtype == batch.hr.dtype == torch.uint8
        for at, position in enumerate(batch.positions):
            pair = train[int(position)]
            assert np.array_equal(batch.lr[at].numpy(), turned(pair.lr, int(turns[position])))
            assert np.array_equal(batch.hr[at].numpy(), turned(pair.hr, int(turns[position])))


@pytest.mark.parametrize("workers", [0, 2])
def test_lr_and_hr_stay_aligned_after_every_turn(train, workers):
    turns_seen = set()
    for batch in take(train, 12, workers=workers):
        for lr, hr, position in zip(batch.lr, batch.hr, batch.positions, strict=True):
            made = resize.downscale(np.ascontiguousarray(hr.numpy()), scale=4).astype(int)
            away = [np.abs(turned(lr.numpy(), turn).astype(int) - made).mean() for turn in range(8)]
            assert away[0] < 1  # rounding may differ, turned content would be far away
            assert min(away[1:]) > 5
            stored = train[int(position)].lr
            turns_seen.add(next(n for n in range(8) if np.array_equal(turned(stored, n), lr)))
    assert turns_seen == set(range(8))


def test_without_augmentation_patches_come_as_they_are_in_the_same_order(train):
    plain, turning = take(train, 4, augment=False), take(train, 4)
    for one, other in zip(plain, turning, strict=True):
        assert np.array_equal(one.positions, other.positions)
        for at, position in enumerate(one.positions):
            assert np.array_equal(one.hr[at].numpy(), train[int(position)].hr)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_batch(train, workers):
    assert_equal(take(train, 11, workers=workers), take(train, 11, workers=0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 4, 7, 8])
def test_starting_at_a_step_gives_what_running_up_to_it_would(train, step, workers):
    through = take(train, step + 3, workers=workers)
    assert_equal(take(train, 3, first_step=step, workers=workers), through[step:])


def test_another_seed_gives_other_batches(train):
    one, other = take(train, 4), take(train, 4, seed=1)
    assert not any(
        np.array_equal(a.positions, b.positions) for a, b in zip(one, other, strict=True)
    )


def test_random_numbers_of_the_process_are_neither_read_nor_drawn(train):
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = take(train, 2, workers=2)
    assert np.array_equal(np.random.get_state()[1], np_before)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.random.seed(99)
    torch.manual_seed(99)
    assert_equal(take(train, 2, workers=2), first)


def test_a_closed_stream_leaves_no_threads(train):
    stream = batches(train, seed=0, batch_size=5, first_step=0, config=DataConfig(workers=3))
    next(stream)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_a_batch_larger_than_the_data_is_refused(train):
    assert steps_per_pass(24, 24) == 1
    assert steps_per_pass(24, 5) == 4
    with pytest.raises(UsageError, match=r"batch_size: 25 patches a step.* only 24"):
        take(train, 1, batch_size=25)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_an_error_when_its_batch_is_due(tiny_shards, tmp_path, workers):
    folder = shutil.copytree(tiny_shards, tmp_path / "damaged")
    split = open_dataset(folder).split("train")
    position = int(take(split, 3)[2].positions[1])
    shard = folder / split.shard_of(position)
    content = bytearray(shard.read_bytes())
    _, hr, _, _ = split.members(position)
    content[content.find(hr) + len(hr) // 2] ^= 1
    shard.write_bytes(content)
    config = DataConfig(workers=workers)
    stream = batches(split, seed=0, batch_size=5, first_step=0, config=config)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(DamagedData, match=shard.name):
        next(stream)


# turns and floats


def test_the_eight_turns_are_all_that_a_square_has():
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    turns = [turned(square, turn) for turn in range(8)]
    assert len({turn.tobytes() for turn in turns}) == 8
    assert np.array_equal(turns[0], square)
    assert np.array_equal(turns[1], np.transpose(square, (1, 0, 2))[::-1])
    assert np.array_equal(turns[4], square[:, ::-1])
    for turn in turns:  # colours stay together
        assert {tuple(pixel) for row in turn for pixel in row} == {
            tuple(pixel) for row in square for pixel in row
        }


def test_floats_are_the_bytes_over_255_in_channels_last_planes():
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([0, 255, 51], dtype=torch.uint8)
    found = to_float(images, torch.device("cpu"))
    assert found.shape == (2, 3, 4, 5)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0, 1, 0.2])
    assert torch.equal((found * 255).round().to(torch.uint8), images.permute(0, 3, 1, 2))
