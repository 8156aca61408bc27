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
_UNSAID = {
    "content.layer": "a high-level layer",
    **dict.fromkeys(
        ("accumulate", "discriminator.dense", "content.activation", "content.input_range",
         "adversarial.r1_every", "optim.beta1", "optim.beta2"),
        "does not say",
    ),
}  # fmt: skip
"""What the paper says where the value is a choice of usrgan.toml's."""
_PRECISION = "bf16"
"""The paper's (§4); "auto" is that where the device computes in it, and the header says what it came to."""
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

    Settings that are no part of a recipe are left out, and those without effect on the stage. Where the paper does
    not say, that is told beside the value of `usrgan.toml`.
    """
    found = {
        name: (mine, f"{_UNSAID[name]}; usrgan.toml: {theirs}" if name in _UNSAID else theirs)
        for name, (mine, theirs) in differences(ours, papers).items()
        if (table := name.partition(".")[0]) not in _NOT_THE_PAPERS
        and not (stage == "psnr" and table in _ADVERSARYS)
    }
    if found.pop("precision", None) and ours.precision != _PRECISION:
        found["precision"] = (ours.precision, _PRECISION)
    if not sees_micro_batches(ours):
        found.pop("accumulate", None)
    return found | {"data.augment": (_OURS[ours.data.augment], _AUGMENTATION)}
