"""A small data set, and a copy of it to break."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards import codec, resize, writer
from shards.index import Row
from shards.manifest import Manifest, Photos, Resize, SampleInfo, Split, encode_info
from shards.writer import Sample


def make_patch(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_LINEAR)


def samples(
    first: int, last: int, split: str, lr_side: int, codec_name: codec.Codec
) -> Iterator[tuple[Sample, Row]]:
    for key in range(first, last):
        hr = make_patch(key)
        lr = resize.downscale(hr, scale=64 // lr_side)
        info = SampleInfo(1.5, 2.0, 4, split, f"{key % 3}.png", "ab", 4, 8)
        stored = codec.encode(hr, codec_name), codec.encode(lr, codec_name)
        sample = Sample(key, stored[0], encode_info(info), stored[1])
        yield sample, Row(info.src, 4, 8, 2.0, 1.5)


def make_dataset(folder: Path, *, lr_side: int = 16, codec_name: codec.Codec = "png") -> Path:
    """20 training pairs in two shards and 5 held-out pairs in one, 64x64 and 16x16."""
    folder.mkdir()
    extension = codec.EXTENSIONS[codec_name]
    train = tuple(
        writer.write_shard(
            folder,
            f"train-{n:06d}.tar",
            samples(10 * n, 10 * n + 10, "train", lr_side, codec_name),
            extension=extension,
        )
        for n in range(2)
    )
    val = writer.write_shard(
        folder,
        "val-000000.tar",
        samples(20, 25, "val", lr_side, codec_name),
        extension=extension,
    )
    manifest = Manifest(
        scale=4,
        hr_size=64,
        codec=codec_name,
        resize=Resize("pillow", *resize.implementation()),
        options={"seed": 0},
        libraries={},
        photos=Photos("folder", 3, 0, 2, 1),
        splits={"train": Split(20, train), "val": Split(5, (val,))},
    )
    writer.publish(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("format") / "shards")


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))
