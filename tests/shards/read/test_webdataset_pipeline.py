"""`shards.webdataset_pipeline` yields the pairs of our own reader, or raises an error."""

from __future__ import annotations

import gc

import pytest
from torch.utils.data import DataLoader

from shards import webdataset_pipeline
from shards.errors import DamagedData, UsageError
from shards.format.index import load_npz
from shards.read.dataset import open_dataset
from tests.shards.support import make_dataset

# webdataset closes its files when they are collected
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Collect once per module, because it is slow with torch loaded; the marks cover it."""
    yield
    gc.collect()


def first(batch: list) -> dict:
    return batch[0]


@pytest.mark.parametrize("codec_name", ["png", "webp", "raw"])
def test_the_pipeline_yields_the_pairs_of_the_reader(codec_name, tmp_path):
    folder = make_dataset(tmp_path / "shards", codec_name=codec_name)
    for name in ("train", "val"):
        split = open_dataset(folder).split(name)
        samples = list(webdataset_pipeline(folder, split=name))
        assert len(samples) == len(split)
        for position, sample in enumerate(samples):
            pair = split[position]
            assert int(sample["__key__"]) == pair.key
            assert sample["info"] == pair.info
            assert (sample["hr"] == pair.hr).all()
            assert (sample["lr"] == pair.lr).all()


def test_loader_workers_read_every_sample_once_per_epoch(dataset):
    pipeline = webdataset_pipeline(dataset, shuffle=8, seed=3)
    loader = DataLoader(pipeline, batch_size=1, collate_fn=first, num_workers=2)
    orders = [[int(sample["__key__"]) for sample in loader] for _ in range(2)]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert orders[0] != list(range(20))


def test_the_same_seed_gives_the_same_order(dataset):
    orders = [
        [sample["__key__"] for sample in webdataset_pipeline(dataset, shuffle=16, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_flipped_bit_is_an_error(dataset_copy):
    shard = dataset_copy / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DamagedData, match=r"train-000001\.tar: sample 000000000010: .* differs from the index"
    ):
        list(webdataset_pipeline(dataset_copy))


def test_a_missing_or_truncated_shard_is_an_error_before_the_first_sample(dataset_copy):
    shard = dataset_copy / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DamagedData, match="bytes instead of"):
        webdataset_pipeline(dataset_copy)
    shard.unlink()
    with pytest.raises(DamagedData, match="is missing"):
        webdataset_pipeline(str(dataset_copy))
    with pytest.raises(UsageError, match="no split 'test'"):
        webdataset_pipeline(dataset_copy, split="test")


@pytest.mark.parametrize("shuffle", [0, 8])
@pytest.mark.parametrize("member", range(3))
@pytest.mark.parametrize("at", [5, 126, 150, 156, 260])  # name, size, checksum, type, magic
def test_a_flipped_bit_in_a_header_is_an_error(dataset_copy, shuffle, member, at):
    shard = dataset_copy / "train-000001.tar"
    first = load_npz(dataset_copy / "index/train-000001.npz").offset[4, member]
    content = bytearray(shard.read_bytes())
    content[int(first) - 512 + at] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedData, match=r"train-000001\.tar: "):
        list(webdataset_pipeline(dataset_copy, shuffle=shuffle))


def test_the_rest_of_a_shard_is_never_lost_silently(dataset_copy):
    shard = dataset_copy / "train-000001.tar"
    first = load_npz(dataset_copy / "index/train-000001.npz").offset[4, 0]
    content = bytearray(shard.read_bytes())
    content[int(first) - 512 + 5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedData, match="a header is damaged after 4 of 10 samples"):
        list(webdataset_pipeline(dataset_copy))
