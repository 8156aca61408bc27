"""A shard cut off or with a flipped bit, anywhere: an error that names shard and key, never a wrong pair."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import DamagedData
from shards.format import tar
from shards.read.dataset import open_dataset
from tests.shards.support import make_dataset
from trainer.config.schema import DataConfig
from trainer.data.batches import Batch
from trainer.data.loader import PatchLoader

SHARD = "train-000001.tar"
STEPS = 5  # of 4: a pass over the 20 pairs


@pytest.fixture(scope="module", params=["png", "webp", "raw"])
def folder(request, tmp_path_factory) -> Path:
    """Small pictures, for every block of a shard is damaged."""
    place = tmp_path_factory.mktemp("damage") / "shards"
    return make_dataset(place, hr_side=32, lr_side=8, codec_name=request.param)


def read_pass(split, wanted: list[Batch] | None = None) -> list[Batch] | str:
    """All batches of a pass, each equal to the wanted one; or the error that ended it."""
    stream = PatchLoader(split, seed=0, batch_size=4, first_step=0, config=DataConfig(workers=0))
    found: list[Batch] = []
    try:
        for number in range(STEPS):
            found.append(next(stream))
            if wanted is not None:
                for name in ("lr", "hr", "dihedrals"):
                    assert torch.equal(getattr(found[-1], name), getattr(wanted[number], name))
    except DamagedData as error:
        return str(error)
    return found


def test_a_cut_at_every_block_is_an_error_that_names_shard_and_key(folder):
    split = open_dataset(folder).split("train")
    path, wanted = folder / SHARD, read_pass(split)
    content = path.read_bytes()
    lying = places(content)
    end = max(last for _, _, last in lying.values())
    try:
        for length in range(0, len(content), tar.BLOCK):
            path.write_bytes(content[:length])
            found = read_pass(split, wanted)
            if length >= end:  # what is missing holds nothing of a pair
                assert not isinstance(found, str)
                continue
            assert isinstance(found, str)
            named = re.fullmatch(rf"{path}: sample (\d{{12}}): .*--repair", found)
            assert named, found
            assert lying[int(named[1])][2] > length
    finally:
        path.write_bytes(content)


def test_a_flipped_bit_in_every_block_is_an_error_or_none_of_a_pair(folder):
    split = open_dataset(folder).split("train")
    path, wanted = folder / SHARD, read_pass(split)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    lying, refused = places(content), 0
    try:
        for start in range(0, len(content), tar.BLOCK):
            at, flipped = start + int(rng.integers(tar.BLOCK)), bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            found = read_pass(split, wanted)
            if isinstance(found, str):
                refused += 1
                key = next(key for key, (first, stop, _) in lying.items() if first <= at < stop)
                assert found.startswith(f"{path}: sample {key:012d}: "), found
            else:
                assert in_padding(content, at)
    finally:
        path.write_bytes(content)
    assert refused > len(content) // tar.BLOCK // 2


def places(content: bytes) -> dict[int, tuple[int, int, int]]:
    """Return per key the offsets of its pair, of the next pair, and of the end of its data."""
    return {
        members[0].key: (members[0].header_at, members[2].end, members[2].data_at + members[2].size)
        for members in tar.scan_tar(memoryview(content))
    }


def in_padding(content: bytes, at: int) -> bool:
    for members in tar.scan_tar(memoryview(content)):
        for member in members:
            if member.header_at <= at < member.data_at + member.size:
                return False
    return True
