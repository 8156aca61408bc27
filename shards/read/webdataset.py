"""A data set as a ready `webdataset.WebDataset`, for other training loops.

Damage that plain webdataset skips is an error here: a missing or truncated shard, a sample that differs from the
index, and a damaged header, which hides the rest of a shard. Order and resume are webdataset's: it reads
shard by shard, shuffles in a buffer and cannot resume inside an epoch (`trainer` can).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np
from isal import isal_zlib

from shards.errors import DamagedData, remedy
from shards.format import codec, index, tar
from shards.format.manifest import SampleInfo
from shards.format.png import RGB8
from shards.read.dataset import open_dataset


class DecodedSample(TypedDict):
    """One sample of the pipeline."""

    __key__: str
    hr: RGB8
    """uint8 RGB [S S 3]."""
    lr: RGB8
    """uint8 RGB [S/scale S/scale 3]."""
    info: SampleInfo


def webdataset_pipeline(
    folder: Path | str, *, split: str = "train", shuffle: int = 0, seed: int = 0
) -> Any:  # noqa: ANN401  webdataset ships no types
    """Return a `WebDataset` of decoded, checked samples; nodes and loader workers get whole shards.

    Args:
        folder: a data set of `prep-shards`.
        split: `train` or `val`.
        shuffle: samples in the shuffle buffer; 0 keeps the order of the shards, which were shuffled
            globally when they were written.
        seed: random seed for the order of shards and the buffer; unused if `shuffle` is 0.

    Raises:
        UsageError: the folder has no data set, or the data set has no such split.
        DamagedData: a shard is missing or truncated; during reading: a sample differs from the index.
    """
    import webdataset

    folder = Path(folder)
    manifest = open_dataset(folder).manifest
    open_dataset(folder).split(split).close()  # checks the length and index of every shard
    urls = [str(folder / shard.name) for shard in manifest.splits[split].shards]
    samples = webdataset.WebDataset(
        urls,
        shardshuffle=len(urls) if shuffle else False,
        detshuffle=bool(shuffle),
        seed=seed,
        nodesplitter=webdataset.split_by_node,
        handler=webdataset.reraise_exception,
        empty_check=False,  # a node may get no shard
    )
    samples = samples.compose(_check_sample_counts)
    if shuffle:
        samples = samples.shuffle(shuffle, seed=seed)
    return samples.map(functools.partial(_decode_sample, name=manifest.codec))


def _check_sample_counts(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the samples; raise if a shard yields too few, because `tarfile` ends silently at a bad header."""
    for url, shard in itertools.groupby(samples, key=itemgetter("__url__")):
        count = 0
        for sample in shard:
            count += 1
            yield sample
        expected = len(_load_index(Path(url)).key)
        if count != expected:
            raise DamagedData(
                f"{url}: a header is damaged after {count} of {expected} samples; {remedy(url)}"
            )


def _decode_sample(sample: dict[str, Any], *, name: codec.Codec) -> DecodedSample:
    path = Path(sample["__url__"])
    stored = _load_index(path)
    row = int(np.searchsorted(stored.key, int(sample["__key__"])))
    parts = tar.member_names(codec.EXTENSIONS[name])
    for number, part in enumerate(parts):
        content = sample.get(part, b"")
        if row == len(stored.key) or isal_zlib.crc32(content) != stored.crc32[row, number]:
            raise DamagedData(
                f"{path}: sample {sample['__key__']}: {part} differs from the index; {remedy(str(path))}"
            )
    hr, meta, lr = (sample[part] for part in parts)
    return {
        "__key__": sample["__key__"],
        "hr": codec.decode(hr, name),
        "lr": codec.decode(lr, name),
        "info": msgspec.json.decode(meta, type=SampleInfo),
    }


@functools.lru_cache(maxsize=4)
def _load_index(path: Path) -> index.ShardIndex:
    return index.load_npz(index.npz_path(path.parent, path.name))
