"""Images, weights and calls of `eval-sr` that several tests share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from click.testing import CliRunner, Result

from shards.format import png
from tests.trainer.support import make_patch
from trainer.cli import eval_main
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.safetensors_io import save_tensors


def run_eval(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(eval_main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def picture(name: str, height: int = 40, width: int = 44) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.encode_rgb(cv2.resize(make_patch(1), (width, height))))
    return path


def weights(name: str, **about: str) -> Path:
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, net.state_dict(), {"scale": "4", **about})
    return path


def dump(name: str, image: np.ndarray) -> None:
    """A picture of any channels and depth, in OpenCV's order."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
