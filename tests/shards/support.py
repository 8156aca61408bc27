"""Small data sets for the tests of shards."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from shards import writer
from shards.format import codec
from shards.format.index import Origins
from shards.format.manifest import (
    Manifest,
    Photos,
    Resize,
    SampleInfo,
    ShardEntry,
    Split,
    encode_info,
)
from shards.images import resize


def make_patch(seed: int, *, side: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)


class Sample(NamedTuple):
    key: int
    hr: bytes
    meta: bytes
    lr: bytes
    src: str = "a.png"


def write_samples(
    folder: Path, name: str, source: Iterable[Sample], *, extension: str = "png"
) -> ShardEntry:
    """Write a shard of samples held in memory."""
    listed = list(source)

    def put(
        content: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint32]:
        for sample, places in zip(listed, offsets.tolist(), strict=True):
            for at, data in zip(places, (sample.hr, sample.lr), strict=True):
                content.data[at : at + len(data)] = data
        return np.array([[zlib.crc32(item.hr), zlib.crc32(item.lr)] for item in listed], np.uint32)

    count = len(listed)
    return writer.write_shard(
        folder,
        name,
        np.array([sample.key for sample in listed]),
        [sample.meta for sample in listed],
        np.array([[len(sample.hr), len(sample.lr)] for sample in listed]),
        Origins(
            [sample.src for sample in listed],
            [4] * count,
            [8] * count,
            [2.0] * count,
            [1.5] * count,
        ),
        put,
        extension=extension,
    )


def samples(
    first: int, last: int, split: str, lr_side: int, codec_name: codec.Codec, hr_side: int = 64
) -> Iterator[Sample]:
    for key in range(first, last):
        hr = make_patch(key, side=hr_side)
        lr = resize.downscale(hr, scale=hr_side // lr_side)
        info = SampleInfo(1.5, 2.0, 4, split, f"{key % 3}.png", "ab", 4, 8)
        stored = codec.encode(hr, codec_name), codec.encode(lr, codec_name)
        yield Sample(key, stored[0], encode_info(info), stored[1], info.src)


def make_dataset(
    folder: Path, *, hr_side: int = 64, lr_side: int = 16, codec_name: codec.Codec = "png"
) -> Path:
    """Write 20 training pairs in two shards and 5 validation pairs in one."""
    folder.mkdir()
    extension = codec.EXTENSIONS[codec_name]
    train = tuple(
        write_samples(
            folder,
            f"train-{n:06d}.tar",
            samples(10 * n, 10 * n + 10, "train", lr_side, codec_name, hr_side),
            extension=extension,
        )
        for n in range(2)
    )
    val = write_samples(
        folder,
        "val-000000.tar",
        samples(20, 25, "val", lr_side, codec_name, hr_side),
        extension=extension,
    )
    manifest = Manifest(
        scale=4,
        hr_size=hr_side,
        codec=codec_name,
        resize=Resize("pillow", *resize.describe_implementation()),
        options={"seed": 0},
        libraries={},
        photos=Photos("folder", 3, 0, 2, 1),
        splits={"train": Split(20, train), "val": Split(5, (val,))},
    )
    writer.publish(folder, manifest)
    return folder
