"""The shards as a ready `webdataset.WebDataset`, for other training loops.

Damage that plain webdataset passes over is an error here: a missing or truncated shard, a sample whose bytes
differ from the index, a damaged header and with it the rest of a shard. Order and
resume are webdataset's: it reads shard by shard, shuffles in a buffer, and cannot go on in the
middle of an epoch (`trainer` can).
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
    """A sample as the pipeline yields it."""

    __key__: str
    hr: RGB8
    """[S S 3]."""
    lr: RGB8
    """[S/scale S/scale 3]."""
    info: SampleInfo


def webdataset_pipeline(
    folder: Path | str, *, split: str = "train", shuffle: int = 0, seed: int = 0
) -> Any:  # noqa: ANN401  webdataset ships no types
    """A `WebDataset` of decoded, checked samples; whole shards go to nodes and loader workers.

    Args:
        folder: what `prep-shards` wrote.
        split: `train` or `val`.
        shuffle: samples in the shuffle buffer; 0 keeps the order of the shards, which are shuffled
            over the whole data set when they are written.
        seed: of the order of shards and the buffer, where `shuffle` is above 0.

    Raises:
        UsageError: there is no data set, or it has no such split.
        DamagedData: a shard is missing or cut off; while reading, a sample is not what was written.
    """
    import webdataset

    folder = Path(folder)
    manifest = open_dataset(folder).manifest
    open_dataset(folder).split(split).close()  # looks at every shard's length and index
    urls = [str(folder / shard.name) for shard in manifest.splits[split].shards]
    read = webdataset.WebDataset(
        urls,
        shardshuffle=len(urls) if shuffle else False,
        detshuffle=bool(shuffle),
        seed=seed,
        nodesplitter=webdataset.split_by_node,
        handler=webdataset.reraise_exception,
        empty_check=False,  # a node may get no shard
    )
    read = read.compose(_check_sample)
    if shuffle:
        read = read.shuffle(shuffle, seed=seed)
    return read.map(functools.partial(_decode_sample, name=manifest.codec))


def _check_sample(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The samples as they come, if all of each shard do: at a damaged header `tarfile` just ends."""
    for url, shard in itertools.groupby(samples, key=itemgetter("__url__")):
        count = 0
        for sample in shard:
            count += 1
            yield sample
        wanted = len(_load_index(Path(url)).key)
        if count != wanted:
            raise DamagedData(
                f"{url}: a header is damaged behind {count} of its {wanted} samples; {remedy(url)}"
            )


def _decode_sample(sample: dict[str, Any], *, name: codec.Codec) -> DecodedSample:
    path = Path(sample["__url__"])
    stored = _load_index(path)
    row = int(np.searchsorted(stored.key, int(sample["__key__"])))
    parts = tar.member_names(codec.EXTENSIONS[name])
    for number, part in enumerate(parts):
        content = sample.get(part, b"")
        if row == len(stored.key) or isal_zlib.crc32(content) != stored.crc32[row, number]:
            raise DamagedData(f"{path}: sample {sample['__key__']}: {part} is not what was written")
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
