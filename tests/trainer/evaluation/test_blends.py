"""Rows of `eval-sr --blend`."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.evaluation.support import run_eval
from trainer.weights.safetensors_io import load_tensors, save_tensors


def test_a_blend_is_a_row_between_its_two_models(odd_pictures, tmp_path, model):
    tensors, _ = load_tensors(model)
    near = tmp_path / "near.safetensors"
    moved = {name: value + 0.02 * torch.randn_like(value) for name, value in tensors.items()}
    save_tensors(near, moved, {"scale": "4"})
    found = run_eval("--hr", odd_pictures, "--model", model, "--model", near, "--name", "a", "--name", "b",
        "--blend", 0, "--blend", 0.5, "--blend", 1, "--json",
    )  # fmt: skip
    psnr = {row["model"]: row["psnr_y"] for row in json.loads(found.stdout)["rows"]}
    assert list(psnr) == ["bicubic", "a", "b", "blend 0", "blend 0.5", "blend 1"]
    assert psnr["blend 0"] == pytest.approx(psnr["a"], abs=1e-3)
    assert psnr["blend 1"] == pytest.approx(psnr["b"], abs=1e-3)
    assert psnr["blend 0.5"] not in (psnr["a"], psnr["b"])


def test_a_blend_needs_two_models(odd_pictures, model):
    refused = run_eval("--hr", odd_pictures, "--model", model, "--blend", 0.5, code=2)
    assert "--blend: needs two --model, not 1" in refused.stderr
