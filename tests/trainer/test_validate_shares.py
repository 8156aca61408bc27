"""Validation shared by ranks scores every held-out patch once and gives what one process gives."""

from __future__ import annotations

import pytest
import torch

from shards.reader import open_dataset
from trainer import validate
from trainer.models import GeneratorConfig, build_generator
from trainer.validate import in_order, means, patch_scores


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(features=4, blocks=1, growth=2), scale=4)


@pytest.mark.parametrize("patches", [0, 1, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_shares_joined_are_the_scores_of_one_process(
    tiny_shards, generator, monkeypatch, patches, world_size, batch
):
    monkeypatch.setattr(validate, "BATCH", batch)
    split, device = open_dataset(tiny_shards).split("val"), torch.device("cpu")
    whole = patch_scores(generator, split, patches=patches, device=device)
    assert len(whole) == (patches or 8)
    shares = [
        patch_scores(
            generator, split, patches=patches, device=device, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert sum(len(share) for share in shares) == len(whole)
    assert in_order(shares) == whole
    assert means(in_order(shares)) == validate.validate(
        generator, split, patches=patches, device=device
    )
