"""In what a configuration trains differently from the paper."""

from __future__ import annotations

from typing import Any

from trainer.config import Config, Stage, differences, sees_micro_batches

_NOT_THE_PAPERS = {"seed", "data", "validation", "checkpoint", "speed", "telemetry", "guard"}
_ADVERSARYS = {"discriminator", "adversarial", "content", "loss"}
"""What stage psnr does not use."""
_AUGMENTATION = "random crops, horizontal flips"
"""The paper's (§3.1)."""
_OURS = {True: "all eight flips and turns", False: "none"}
"""Of `data.augment` (docs/decisions/0015)."""


def deviations(ours: Config, papers: Config, *, stage: Stage) -> dict[str, tuple[Any, Any]]:
    """In what a stage trains differently from the paper: `{name: (ours, papers)}`.

    Settings of which the paper says nothing are left out, and those without effect on the stage.
    """
    found = {
        name: values
        for name, values in differences(ours, papers).items()
        if (table := name.partition(".")[0]) not in _NOT_THE_PAPERS
        and not (stage == "psnr" and table in _ADVERSARYS)
    }
    if not sees_micro_batches(ours):
        found.pop("accumulate", None)
    return found | {"data.augment": (_OURS[ours.data.augment], _AUGMENTATION)}
