"""The Python blocks of the guide run as they stand."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

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
