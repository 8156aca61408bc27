"""Keeping decoded patches changes no batch, only what is read."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from shards.errors import UsageError
from shards.read.dataset import open_dataset
from tests.trainer.data.support import assert_equal, take
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader


@pytest.fixture
def split(tiny_shards):
    return open_dataset(tiny_shards).split("train")


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", ["ram", "device"])
def test_batches_are_the_same_with_a_cache(split, cache, workers):
    found = take(split, 13, cache=cache, workers=workers)
    assert_equal(found, take(split, 13))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["ram", "device"])
def test_crops_out_of_a_cache_are_those_out_of_the_shards(larger, cache, workers):
    wanted = take(larger, 40, batch_size=7)
    assert_equal(take(larger, 40, batch_size=7, cache=cache, workers=workers), wanted)


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_nothing_is_read_any_more_when_all_is_there(split, cache):
    config = DataConfig(workers=0, cache=cache)
    stream = PatchLoader(split, seed=0, batch_size=6, first_step=0, config=config)
    first = sum(len(set(batch.positions.tolist())) for batch in islice(stream, 4))
    assert first == len(split)  # 4 batches of 6 are a pass
    before = split.ranges.bytes_read
    assert before > 0
    next(stream)
    assert split.ranges.bytes_read == before


def test_a_kept_patch_survives_what_the_step_does_to_its_batch(split):
    stream = PatchLoader(
        split, seed=0, batch_size=6, first_step=0, config=DataConfig(workers=0, cache="ram")
    )
    for batch in islice(stream, 4):
        batch.hr.zero_()
    assert_equal(list(islice(stream, 4)), take(split, 4, batch_size=6, first_step=4))


def test_a_cache_that_does_not_hold_the_split_is_refused(split):
    with pytest.raises(
        UsageError, match=r"data\.cache_gib = 0\.0002: the 24 .* set data.cache=none"
    ):
        take(split, 1, cache="ram", cache_gib=0.0002)
    assert len(take(split, 1, cache="none", cache_gib=0.0002)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_batches_for_a_gpu_are_those_for_a_cpu(larger, cache):
    device = torch.device("cuda")
    stream = PatchLoader(
        larger, seed=0, batch_size=7, first_step=0, config=DataConfig(cache=cache), device=device
    )
    for found, wanted in zip(islice(stream, 40), take(larger, 40, batch_size=7), strict=True):
        assert found.hr.is_cuda if cache == "device" else found.hr.is_pinned()
        assert np.array_equal(found.positions, wanted.positions)
        for name in ("lr", "hr", "dihedrals"):
            assert torch.equal(getattr(found, name).cpu(), getattr(wanted, name))
    stream.close()
