"""The request of a run, its terminal, and the session of one stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.io.remote import Location
from shards.read.dataset import Dataset
from trainer.config.schema import Config, Stage
from trainer.distributed.process_group import ProcessGroup
from trainer.perceptual.metric import PerceptualMetric

Progress = Callable[..., AbstractContextManager[Callable[[int, str], None]]]
"""A progress bar: a context manager that yields `advance(patches, note)`."""


@dataclass(frozen=True)
class RunRequest:
    """A run as `train-sr` was asked for it."""

    run: Path
    """Run folder."""
    stages: dict[Stage, Config]
    """Configuration of each stage, in the order of training."""
    preset: str
    """Name of the preset or path of the TOML file, for the record."""
    shards: Location
    """Folder or URL of the data set."""
    device: str
    """`cpu`, `cuda` or `auto`."""
    init: Path | None = None
    """Weights that the first stage starts from."""
    content_weights: Path | None = None
    """VGG-19 weights of the content loss; None fetches them."""
    lpips: Path | None = None
    """Network of LPIPS; None validates without it."""


@dataclass(frozen=True)
class Terminal:
    """How a run talks to its user, and how the user stops it."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress
    stop_requested: Callable[[], bool]

    def muted(self) -> Terminal:
        """Return the terminal of a rank other than 0: it prints nothing."""
        return Terminal(_discard, _discard, _no_progress, self.stop_requested)


@dataclass(frozen=True)
class StageSession:
    """One stage with everything it needs."""

    run: Path
    stage: Stage
    config: Config
    preset: str
    paper: Config
    """The paper's settings of this stage, for the list of deviations."""
    dataset: Dataset
    device: torch.device
    ranks: ProcessGroup
    init: Path | None
    """Weights to start from; None starts from random ones. Rank 0 reads them."""
    content_weights: Path | None
    lpips: PerceptualMetric | None
    """LPIPS of the held-out patches, where its network is given."""
    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress
    stop_requested: Callable[[], bool]


def _discard(_line: str) -> None:
    """Print nothing."""


def _no_progress(*_: Any, **__: Any) -> AbstractContextManager[Callable[[int, str], None]]:  # noqa: ANN401  as progress has it
    return nullcontext(lambda _patches, _note: None)
