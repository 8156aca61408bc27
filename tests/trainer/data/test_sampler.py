"""The order is a permutation in lanes of chunks, the same for everyone who asks for a part of it."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import pytest

from shards.errors import UsageError
from trainer.data.sampler import (
    CHUNK_SIZE,
    ChunkSlice,
    EpochSampler,
    plan_pass,
    slots_of_rank,
    steps_per_pass,
)

DIGEST = "ab" * 32


def order_of(samples, *, batch_size=1, seed=3, free=0, digest=DIGEST, turns=True) -> EpochSampler:
    return EpochSampler(samples, free, digest, seed, batch_size, turns)


def laid(order: EpochSampler, number: int) -> ChunkSlice:
    """A whole pass, end to end."""
    plan, place, found = plan_pass(order, number), 0, []
    while place < order.samples:
        found.append(plan.slice_from(place))
        place += len(found[-1].positions)
    assert place == order.samples
    return ChunkSlice(*(np.concatenate(each) for each in zip(*found, strict=True)))


def global_batches(order: EpochSampler, steps: int, *, first_step=0) -> np.ndarray:
    """Positions [steps batch_size]."""
    lanes = []
    for number in range(order.batch_size):
        flat = (
            p for visit in order.slot_stream(number, first_step=first_step) for p in visit.positions
        )
        lanes.append(list(islice(flat, steps)))
    return np.array(lanes).T


@pytest.mark.parametrize("samples", [1, 2, 24, 63, 64, 65, 128, 1000, 5000])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_pass_is_a_permutation(samples, number):
    assert sorted(laid(order_of(samples), number).positions.tolist()) == list(range(samples))


def test_a_chunk_holds_neighbours_that_lie_in_one_read():
    order = order_of(5000)
    plan, place, sizes = plan_pass(order, 0), 0, []
    while place < order.samples:
        positions = plan.slice_from(place).positions
        assert positions.max() - positions.min() + 1 == len(positions) <= CHUNK_SIZE
        sizes.append(len(positions))
        place += len(positions)
    assert sum(size < CHUNK_SIZE for size in sizes) <= 2


def test_neighbours_change_from_pass_to_pass():
    order, edges = order_of(5000), []
    for number in range(20):
        plan = plan_pass(order, number)
        edges.append(plan.phase)
        assert 1 <= plan.phase <= CHUNK_SIZE
    assert len(set(edges)) > 12


def test_data_seed_and_pass_each_give_another_order_and_other_turns():
    base = laid(order_of(1000), 5)
    others = [
        laid(order_of(1000, digest="cd" * 32), 5),
        laid(order_of(1000, seed=4), 5),
        laid(order_of(1000), 6),
    ]
    for other in others:
        assert (base.positions == other.positions).mean() < 0.02
        one, two = (np.empty(1000, int) for _ in range(2))
        one[base.positions], two[other.positions] = base.dihedrals, other.dihedrals
        assert 0.05 < (one == two).mean() < 0.2  # an eighth by chance


def test_seed_and_pass_do_not_run_into_each_other():
    one, other = laid(order_of(100, seed=1), 12), laid(order_of(100, seed=11), 2)
    assert not np.array_equal(one.positions, other.positions)


def test_turns_and_corners_are_evenly_spread_and_independent_of_the_place():
    found = laid(order_of(80_000, free=4), 0)
    counts = np.bincount(found.dihedrals, minlength=8)
    assert np.abs(counts - 10_000).max() < 400
    for axis in range(2):
        assert np.abs(np.bincount(found.corners[:, axis], minlength=5) - 16_000).max() < 600
    place = np.arange(len(found.positions))
    for values in (found.positions, found.dihedrals, *found.corners.T):
        assert abs(np.corrcoef(place, values)[0, 1]) < 0.02
    assert abs(np.corrcoef(found.corners.T)[0, 1]) < 0.02


def test_turn_and_corner_belong_to_the_sample_and_not_to_the_batch_size():
    def by_sample(batch_size: int) -> list[tuple[int, ...]]:
        order = order_of(640, batch_size=batch_size, free=8)
        seen = {}
        for number in range(batch_size):
            left = steps_per_pass(640, batch_size)
            for visit in order.slot_stream(number, first_step=0):
                for position, turn, corner in zip(*visit, strict=True):
                    seen[int(position)] = (int(turn), *corner.tolist())
                left -= len(visit.positions)
                if left == 0:
                    break
        return [seen[n] for n in range(640)]

    assert by_sample(1) == by_sample(16) == by_sample(64)


def test_the_order_is_the_one_of_the_first_release():
    """A change here makes every saved run go on with other data than it began with."""
    found = laid(order_of(8, seed=0, free=8), 0)
    assert found.positions.tolist() == [0, 1, 6, 2, 5, 7, 3, 4]
    assert found.dihedrals.tolist() == [1, 0, 6, 0, 5, 2, 7, 5]
    assert found.corners[:3].tolist() == [[5, 6], [3, 5], [6, 1]]


@pytest.mark.parametrize("draw", range(30))
def test_every_batch_is_the_same_for_any_start_and_a_sample_comes_once_a_pass(draw):
    rng = np.random.default_rng(draw)
    batch_size = int(rng.integers(1, 40))
    samples = int(rng.integers(batch_size, 3000))
    order = order_of(samples, batch_size=batch_size, seed=draw)
    steps = steps_per_pass(samples, batch_size)
    count = 2 * steps + 3
    whole = global_batches(order, count)
    for number in range(2):
        seen = whole[number * steps : (number + 1) * steps].ravel()
        assert len(set(seen.tolist())) == len(seen)
        assert np.array_equal(
            seen.reshape(steps, batch_size).T.ravel(), laid(order, number).positions[: len(seen)]
        )
    start = int(rng.integers(0, count - 1))
    assert np.array_equal(
        global_batches(order, count - start, first_step=start), whole[start:]
    )  # resumed


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_the_places_of_a_batch(world_size):
    shares = [slots_of_rank(32, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [place for share in shares for place in share] == list(range(32))
    assert len({len(share) for share in shares}) == 1


def test_a_batch_that_cannot_be_shared_or_filled_is_refused():
    with pytest.raises(UsageError, match=r"batch_size: 30 .* 4 processes; use batch_size=32"):
        slots_of_rank(30, rank=0, world_size=4)
    assert steps_per_pass(24, 24) == 1
    assert steps_per_pass(24, 5) == 4
    with pytest.raises(UsageError, match=r"batch_size: a step needs 25 patches.* only 24"):
        steps_per_pass(24, 25)


def test_a_hundred_million_samples_cost_a_moment():
    order, start = order_of(10**8, batch_size=256), time.process_time()
    first = [
        next(order.slot_stream(number, first_step=350_000)).positions[0] for number in range(256)
    ]
    assert len(set(first)) == 256
    assert time.process_time() - start < 3
    assert plan_pass(order, 0).ends[-1] == 10**8
