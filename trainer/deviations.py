"""In what a configuration trains differently from the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.manifest import Manifest
from trainer.config import Config, Stage, differences, sees_micro_batches

_NOT_THE_PAPERS = {"seed", "data", "validation", "checkpoint", "speed", "telemetry", "guard"}
_ADVERSARYS = {"discriminator", "adversarial", "content", "loss"}
"""What stage psnr does not use."""
_AUGMENTATION = "random crops, horizontal flips"
"""The paper's (§3.1)."""
_OURS = {True: "all eight flips and turns", False: "none"}
"""Of `data.augment` (docs/decisions/0015)."""
_PATCHES = {"scale": 4, "hr-size": 128, "degrade": "bicubic"}
"""The paper's (§3.1): HR of 128 pixels, LR of 32 by antialiased bicubic."""


def patches_of(manifest: Manifest) -> dict[str, Any]:
    """What training sees of a data set, by the names of prep-shards' options."""
    degrade = manifest.options.get("degrade", "bicubic")
    return {"scale": manifest.scale, "hr-size": manifest.training_size, "degrade": degrade}


def patch_deviations(ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In what the patches are not the paper's: `{name: (ours, papers)}`; `ours` as `patches_of` tells."""
    return {
        f"prep-shards --{name}": (ours[name], papers)
        for name, papers in _PATCHES.items()
        if ours[name] != papers
    }


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
