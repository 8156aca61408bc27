"""Helpers of several test modules."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader


def take(
    split, count, *, first_step=0, seed=0, batch_size=5, workers=0, rank=0, world_size=1, **settings
):
    stream = PatchLoader(
        split, seed=seed, batch_size=batch_size, first_step=first_step,
        config=DataConfig(workers=workers, **settings), rank=rank, world_size=world_size,
    )  # fmt: skip
    found = list(islice(stream, count))
    stream.close()
    return found


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert torch.equal(one.dihedrals, other.dihedrals)
        assert torch.equal(one.lr, other.lr)
        assert torch.equal(one.hr, other.hr)
