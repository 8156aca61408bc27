"""The names of `import trainer`: generators from files, upscaled images, scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import shards
import trainer
from shards.errors import UsageError, UsrganError
from shards.format import png
from shards.images.photos import read_photo
from tests.trainer.support import make_patch
from tests.trainer.upscaling.support import run_upscale
from trainer.evaluation import metrics

IMAGE = make_patch(1)[:40, :56].copy()


def test_load_generator_returns_scale_name_and_metadata(model):
    for path in (model, str(model)):
        generator = trainer.load_generator(path, device="cpu")
        assert isinstance(generator, trainer.Generator)
        assert (generator.scale, generator.name) == (4, model.stem)
        assert generator.metadata["scale"] == "4"
        assert not generator.module.training


@pytest.mark.parametrize(
    ("path", "device", "words"),
    [
        ("no.safetensors", "cpu", "no.safetensors: no such file"),
        (None, "gpu", "device: gpu is unknown; use auto, cpu or cuda"),
    ],
)
def test_load_generator_refuses_missing_files_and_unknown_devices(model, path, device, words):
    with pytest.raises(UsageError, match=words):
        trainer.load_generator(path or model, device=device)


def test_upscale_equals_the_module_on_the_whole_image(model):
    generator = trainer.load_generator(model, device="cpu")
    with torch.inference_mode():
        batch = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
        expected = generator.module(batch).clamp(0, 1).mul(255).round()
    upscaled = generator.upscale(IMAGE)
    assert (upscaled.shape, upscaled.dtype) == ((160, 224, 3), np.uint8)
    assert np.array_equal(upscaled, expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("tile", [16, None])
def test_upscale_equals_the_command(model, tmp_path, tile):
    (tmp_path / "lr.png").write_bytes(png.encode_rgb(IMAGE))
    options = [] if tile is None else ["--tile", tile]
    run_upscale(
        tmp_path / "lr.png",
        "-o",
        tmp_path / "sr.png",
        "--model",
        model,
        "--device",
        "cpu",
        *options,
    )
    upscaled = trainer.load_generator(model, device="cpu").upscale(IMAGE, tile=tile)
    assert np.array_equal(upscaled, read_photo(Path(tmp_path / "sr.png")).pixels)


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8), [[0]]]
)  # fmt: skip
def test_an_image_of_another_type_or_shape_is_refused(model, bad):
    with pytest.raises(UsageError, match=r"image: is .*; pass RGB as uint8 \[height, width, 3\]"):
        trainer.load_generator(model, device="cpu").upscale(bad)
    with pytest.raises(UsageError, match="hr: is "):
        trainer.score(IMAGE, bad, crop=4)


def test_a_tile_below_16_is_refused(model):
    with pytest.raises(UsageError, match="tile: 8 is too small; use at least 16"):
        trainer.load_generator(model, device="cpu").upscale(IMAGE, tile=8)


def test_score_is_that_of_the_tables():
    sr = np.clip(IMAGE.astype(int) + 3, 0, 255).astype(np.uint8)
    scores = trainer.score(sr, IMAGE, crop=4)
    assert isinstance(scores, trainer.Scores)
    assert scores == metrics.score(sr, IMAGE, crop=4)
    assert (
        trainer.score(IMAGE, IMAGE, crop=4).psnr_y == 100
    )  # the protocol's value for equal images


def test_score_refuses_other_sizes_and_a_negative_border():
    with pytest.raises(UsrganError, match="they must agree"):
        trainer.score(IMAGE[:-4], IMAGE, crop=4)
    with pytest.raises(UsageError, match="crop: -1 is negative"):
        trainer.score(IMAGE, IMAGE, crop=-1)


def test_import_trainer_loads_no_torch():
    code = "import sys, trainer; assert 'torch' not in sys.modules; assert trainer.score"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'trainer' has no attribute 'nothing'"):
        _ = trainer.nothing
    with pytest.raises(AttributeError, match="module 'shards' has no attribute 'nothing'"):
        _ = shards.nothing
