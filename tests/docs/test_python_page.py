"""The Python blocks of the guide run as they stand."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import shards
import trainer
from shards.errors import UsageError
from tests.shards.support import make_dataset
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.safetensors_io import save_tensors

PAGE = Path(__file__).parents[2] / "docs/guide/python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NETWORK = GeneratorConfig(features=8, blocks=1, growth=4, norm="none")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page names, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, side in (("lr.png", 24), ("hr.png", 96)):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Path(name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    generator = build_generator(NETWORK, scale=4)
    save_tensors(Path("gan.safetensors"), generator.state_dict(), {"stage": "gan"})
    make_dataset(tmp_path / "shards")
    return tmp_path


# webdataset closes its files when they are collected
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_page_runs(number, examples, capsys):
    exec(compile(BLOCKS[number], str(PAGE), "exec"), {})
    gc.collect()
    assert capsys.readouterr().out.strip()


def test_a_generator_upscales_as_its_module_does(examples):
    generator = trainer.load_generator("gan.safetensors", device="cpu")
    image = np.random.default_rng(1).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    with torch.inference_mode():
        batch = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        expected = generator.module(batch).clamp(0, 1).mul(255).round()
    upscaled = generator.upscale(image)
    assert (upscaled.shape, upscaled.dtype) == ((80, 112, 3), np.uint8)
    assert np.array_equal(upscaled, expected[0].permute(1, 2, 0).numpy())
    assert generator.metadata["stage"] == "gan"


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_an_image_of_another_kind_is_refused(bad, examples):
    with pytest.raises(UsageError, match=r"image: is .*; pass RGB as uint8 \[height, width, 3\]"):
        trainer.load_generator("gan.safetensors", device="cpu").upscale(bad)


def test_an_image_scores_best_against_itself():
    image = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    scores = trainer.score(image, image)
    assert scores.psnr_y == 100  # the protocol's value for equal images
    assert scores.ssim_y == pytest.approx(1)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'trainer' has no attribute 'nothing'"):
        _ = trainer.nothing
    with pytest.raises(AttributeError, match="module 'shards' has no attribute 'nothing'"):
        _ = shards.nothing
