"""One stage as it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from shards.read.dataset import Dataset
from trainer.config.schema import Config, Stage
from trainer.distributed.process_group import ProcessGroup
from trainer.perceptual.metric import PerceptualMetric


@dataclass(frozen=True)
class StageSession:
    """What to train on what, and how to talk about it."""

    run: Path
    stage: Stage
    config: Config
    preset: str
    paper: Config
    """The paper's settings of this stage: the header names each deviation."""
    dataset: Dataset
    device: torch.device
    ranks: ProcessGroup
    init: Path | None
    """Weights to start from; None: fresh ones. Rank 0 reads them."""
    content_weights: Path | None
    lpips: PerceptualMetric | None
    """Measures the held-out patches too, where it is given."""
    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[..., AbstractContextManager[Callable[[int, str], None]]]
    stop_requested: Callable[[], bool]
