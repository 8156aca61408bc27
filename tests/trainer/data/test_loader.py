"""Batches are a function of (data, seed, step), whoever decodes them and wherever one starts."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
import torch

from shards.errors import DamagedData, UsageError
from shards.images import resize
from shards.read.dataset import open_dataset
from tests.trainer.data.support import assert_equal, take
from trainer.config.schema import DataConfig
from trainer.data.batches import apply_dihedral, to_float_images
from trainer.data.loader import PatchLoader, _use_device
from trainer.data.sampler import EpochSampler, plan_pass


@pytest.fixture(scope="module")
def train(tiny_shards):
    return open_dataset(tiny_shards).split("train")


def order_of(split, *, seed=0, batch_size=5):
    return EpochSampler(len(split), 0, split.manifest.dataset_sha256, seed, batch_size)


def shown(batch, name):
    """The patches of a batch as the step sees them, uint8 [B h w 3]."""
    floats = to_float_images(getattr(batch, name), torch.device("cpu"), batch.dihedrals)
    return (floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# batches


def test_a_pass_shows_every_sample_once_and_leaves_the_rest(train):
    found = take(train, 4)  # 24 samples: 4 batches of 5
    seen = np.array([batch.positions for batch in found])
    assert len(set(seen.ravel().tolist())) == 20
    laid = plan_pass(order_of(train), 0).slice_from(0).positions
    assert np.array_equal(seen.T.ravel()[: len(laid)], laid[:20])


def test_the_next_pass_begins_anew_with_its_own_order(train):
    seen = [batch.positions.tolist() for batch in take(train, 12)]
    assert len({tuple(batch) for batch in seen}) == 12
    for start in (0, 4, 8):
        assert len({p for batch in seen[start : start + 4] for p in batch}) == 20


def test_over_passes_every_sample_comes_up(train):
    seen = np.concatenate([batch.positions for batch in take(train, 8 * 4)])
    assert set(seen.tolist()) == set(range(24))


def test_a_batch_holds_the_pairs_of_its_positions_turned_alike(train):
    order = order_of(train, seed=9)
    lanes = [order.slot_stream(place, first_step=0) for place in range(5)]
    turns = [np.concatenate([next(lane).dihedrals for _ in range(24)]) for lane in lanes]
    for number, batch in enumerate(take(train, 6, seed=9)):
        assert batch.lr.shape == (5, 16, 16, 3)
        assert batch.hr.shape == (5, 64, 64, 3)
        assert batch.lr.dtype == batch.hr.dtype == torch.uint8
        lr, hr = shown(batch, "lr"), shown(batch, "hr")
        for at, position in enumerate(batch.positions):
            pair, turn = train[int(position)], int(turns[at][number])
            assert turn == batch.dihedrals[at]
            assert np.array_equal(lr[at], apply_dihedral(pair.lr, turn))
            assert np.array_equal(hr[at], apply_dihedral(pair.hr, turn))


@pytest.mark.parametrize("workers", [0, 2])
def test_lr_and_hr_stay_aligned_after_every_turn(train, workers):
    turns_seen = set()
    for batch in take(train, 12, workers=workers):
        pairs = zip(shown(batch, "lr"), shown(batch, "hr"), batch.positions, strict=True)
        for lr, hr, position in pairs:
            made = resize.downscale(np.ascontiguousarray(hr), scale=4).astype(int)
            away = [np.abs(apply_dihedral(lr, turn).astype(int) - made).mean() for turn in range(8)]
            assert away[0] < 1  # rounding may differ, turned content would be far away
            assert min(away[1:]) > 5
            stored = train[int(position)].lr
            turns_seen.add(
                next(n for n in range(8) if np.array_equal(apply_dihedral(stored, n), lr))
            )
    assert turns_seen == set(range(8))


def test_without_augmentation_patches_come_as_they_are_in_the_same_order(train):
    plain, turning = take(train, 4, augment=False), take(train, 4)
    for one, other in zip(plain, turning, strict=True):
        assert np.array_equal(one.positions, other.positions)
        for at, position in enumerate(one.positions):
            assert np.array_equal(shown(one, "hr")[at], train[int(position)].hr)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_batch(train, workers):
    assert_equal(take(train, 11, workers=workers), take(train, 11, workers=0))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_ranks_and_workers_change_no_global_batch(train, world_size, workers):
    wanted = take(train, 7, batch_size=8, first_step=1)
    ranks = [
        take(train, 7, batch_size=8, first_step=1, workers=workers, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for batch, *shares in zip(wanted, *ranks, strict=True):
        assert np.array_equal(np.concatenate([s.positions for s in shares]), batch.positions)
        for name in ("lr", "hr", "dihedrals"):
            assert torch.equal(torch.cat([getattr(s, name) for s in shares]), getattr(batch, name))


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
    stream = PatchLoader(train, seed=0, batch_size=5, first_step=0, config=DataConfig(workers=3))
    next(stream)
    ours = ("decode", "plan", "read")
    assert {t.name.partition("_")[0] for t in threading.enumerate()} >= set(ours)
    stream.close()
    assert not any(t.name.startswith(("decode", "plan")) for t in threading.enumerate())
    readers = [t for t in threading.enumerate() if t.name.startswith("read")]
    for thread in readers:  # close() does not wait for reads under way
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in readers)


def test_a_gpu_without_a_number_is_no_mishap_for_the_threads(monkeypatch):
    """`--device cuda` has none, and torch's set_device wants one."""
    used = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", used.append, raising=False)
    for device in ("cpu", "cuda", "cuda:1"):
        _use_device(torch.device(device))
    assert used == [1]


def test_a_batch_larger_than_the_data_is_refused(train):
    with pytest.raises(UsageError, match=r"batch_size: a step needs 25 patches.* only 24"):
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
    stream = PatchLoader(split, seed=0, batch_size=5, first_step=0, config=config)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(DamagedData, match=shard.name):
        next(stream)


# turns and floats


def test_the_eight_turns_are_all_that_a_square_has():
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    turns = [apply_dihedral(square, turn) for turn in range(8)]
    assert len({turn.tobytes() for turn in turns}) == 8
    assert np.array_equal(turns[0], square)
    assert np.array_equal(turns[1], np.transpose(square, (1, 0, 2))[::-1])
    assert np.array_equal(turns[4], square[:, ::-1])
    for turn in turns:  # colours stay together
        assert {tuple(pixel) for row in turn for pixel in row} == {
            tuple(pixel) for row in square for pixel in row
        }


def test_turning_on_the_device_is_turning_each_image():
    images = torch.randint(0, 256, (16, 6, 6, 3), dtype=torch.uint8)
    turns = torch.arange(16) % 8
    found = to_float_images(images, torch.device("cpu"), turns)
    wanted = np.stack(
        [apply_dihedral(i.numpy(), int(t)) for i, t in zip(images, turns, strict=True)]
    )
    assert torch.equal(found, to_float_images(torch.from_numpy(wanted), torch.device("cpu")))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_floats_are_the_bytes_over_255_in_channels_last_planes():
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([0, 255, 51], dtype=torch.uint8)
    found = to_float_images(images, torch.device("cpu"))
    assert found.shape == (2, 3, 4, 5)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0, 1, 0.2])
    assert torch.equal((found * 255).round().to(torch.uint8), images.permute(0, 3, 1, 2))


def test_data_threads_choose_a_gpu_that_has_a_number(monkeypatch):
    """torch's `set_device` refuses one without."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        _use_device(torch.device(name))
    assert chosen == [torch.device("cuda", 1)]
