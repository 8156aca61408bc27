"""A data set of smooth noise, made once: LR belongs to HR, as with photos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shards import writer
from shards.format import png
from shards.format.manifest import Manifest, Photos, Resize, SampleInfo, Split, encode_info
from shards.images import resize
from tests.shards.support import Sample, write_samples
from tests.trainer.support import make_patch
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.safetensors_io import save_tensors

SIDE = 64
"""Side of an HR patch, pixels; the usual 128 would make the tests four times slower and prove no more."""


def samples(first: int, last: int, split: str) -> Iterator[Sample]:
    for key in range(first, last):
        hr = make_patch(key, side=SIDE)
        lr = png.encode_rgb(resize.downscale(hr, scale=4))
        info = SampleInfo(1.0, 2.0, 4, split, f"{key % 5}.png", "00", 4, 8)
        yield Sample(key, png.encode_rgb(hr), encode_info(info), lr, info.src)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training pairs in two shards and 8 held-out pairs in one, 16x16 to 64x64."""
    folder = tmp_path_factory.mktemp("shards")
    train = tuple(
        write_samples(folder, f"train-{n:06d}.tar", samples(12 * n, 12 * n + 12, "train"))
        for n in range(2)
    )
    val = write_samples(folder, "val-000000.tar", samples(24, 32, "val"))
    writer.publish(
        folder,
        Manifest(
            scale=4,
            hr_size=SIDE,
            codec="png",
            resize=Resize("pillow", *resize.describe_implementation()),
            options={},
            libraries={},
            photos=Photos("folder", 5, 0, 4, 1),
            splits={"train": Split(24, train), "val": Split(8, (val,))},
        ),
    )
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small RRDBNet, x4."""
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_tensors(path, net.state_dict(), {"scale": "4"})
    return path


@pytest.fixture
def odd_pictures(tmp_path: Path) -> Path:
    """`Mine/HR` with three pictures of odd sizes."""
    folder = tmp_path / "Mine/HR"
    folder.mkdir(parents=True)
    for number in range(3):
        picture = np.ascontiguousarray(make_patch(number)[: 128 - number, : 121 + number])
        (folder / f"p{number}.png").write_bytes(png.encode_rgb(picture))
    return folder
