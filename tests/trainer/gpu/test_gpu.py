"""Tests that need a CUDA device; `make test-gpu` runs them."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.support import logged, train
from trainer.config.load import load_config
from trainer.training.state import build_state
from trainer.training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    # other versions of torch and its libraries have warnings of their own, but none is about our use of Adam
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:.*capturable"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
SMALL = [
    "generator.features=16",
    "generator.blocks=2",
    "discriminator.features=8",
    "content.layer=conv2_2",
]


@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_a_step_in_float32_agrees_with_the_cpu(stage, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = load_config("tiny", stage=stage, overrides=SMALL)
    lr, hr = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 128, 128)
    losses = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        state = build_state(config, stage=stage, scale=4, device=device, content_weights=None)
        found = train_step(state, config, lr.to(device), hr.to(device), False).losses
        losses.append({name: value.item() for name, value in found.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_both_stages_train_in_bf16_and_validate(tiny_shards, tmp_path):
    train(tiny_shards, tmp_path / "run", "--stage", "both", "--device", "cuda")
    rows = logged(tmp_path / "run")
    assert {row["stage"] for row in rows} == {"psnr", "gan"}
    assert all(row["val_psnr_y"] > 5 for row in rows)


def test_fp16_trains_both_stages_with_a_scaler(tiny_shards, tmp_path):
    half = ["--device", "cuda", "--set", "precision=fp16"]
    said = train(tiny_shards, tmp_path / "run", "--stage", "both", *half).stderr
    assert "fp16 with a GradScaler" in said
    assert all(row["val_psnr_y"] > 5 for row in logged(tmp_path / "run"))


def test_a_run_goes_on_from_its_checkpoint(tiny_shards, tmp_path):
    constant = ["--stage", "psnr", "--device", "cuda", "--set", "optim.schedule=constant"]
    train(tiny_shards, tmp_path / "run", *constant, "--set", "epochs=2")
    again = train(tiny_shards, tmp_path / "run", *constant, "--set", "epochs=3")
    assert "resuming at 32 patches" in again.stderr
    assert [row["epoch"] for row in logged(tmp_path / "run")] == [1, 2, 3]
