"""A row of the log is numbers and words, wherever the state lies."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.config.load import load_config
from trainer.runs.log import EpochLog
from trainer.training.state import COUNTED, build_state


def test_a_row_is_json_where_the_learning_rate_lies_on_the_device():
    config = load_config("tiny", stage="psnr", overrides=["epoch_patches=16"])
    device = torch.device("cpu")
    state = build_state(config, stage="psnr", scale=4, device=device, content_weights=None)
    state.optimizer.param_groups[0]["lr"] = torch.tensor(2e-3)  # as `build_adam` has it on a GPU
    state.losses = {"pixel": torch.tensor(0.5), COUNTED: torch.tensor(2.0)}
    row = json.loads(json.dumps(EpochLog().row(state, config)))
    assert row["lr"] == pytest.approx(2e-3)
    assert row["loss_pixel"] == 0.25
