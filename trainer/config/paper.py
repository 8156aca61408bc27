"""Settings and patches in which a training deviates from the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.config.schema import Config, Stage, has_batch_statistics
from trainer.config.settings import SETTINGS, differences

if TYPE_CHECKING:
    from shards.format.manifest import Manifest

PAPER_PRECISION = "bf16"
"""Precision of the paper (§4). "auto" is bf16 where the device has it; the run header names the outcome."""
PAPER_AUGMENTATION = "random crops, horizontal flips"
"""Augmentation of the paper (§3.1)."""
AUGMENTATION = {True: "all eight flips and turns", False: "none"}
"""Augmentation by `data.augment` (docs/internals/decisions/0015)."""
PAPER_PATCHES = {"scale": 4, "hr-size": 128, "degrade": "bicubic"}
"""Patches of the paper (§3.1): HR of 128 pixels, LR of 32 by antialiased bicubic."""


def describe_patches(manifest: Manifest) -> dict[str, Any]:
    """Return the properties of a data set that training sees, by the names of prep-shards' options."""
    degrade = manifest.options.get("degrade", "bicubic")
    return {"scale": manifest.scale, "hr-size": manifest.training_size, "degrade": degrade}


def list_patch_deviations(patches: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return `{name: (ours, paper's)}` of patches that `describe_patches` described."""
    return {
        f"prep-shards --{name}": (patches[name], papers)
        for name, papers in PAPER_PATCHES.items()
        if patches[name] != papers
    }


def list_deviations(ours: Config, papers: Config, *, stage: Stage) -> dict[str, tuple[Any, Any]]:
    """Return `{name: (ours, paper's)}` of the settings in which a stage deviates from the paper.

    Settings outside the recipe are left out, and so are those without effect on the stage. Where the paper gives no
    value, its words stand beside the value of `usrgan.toml`.
    """
    found = {}
    for name, (mine, theirs) in differences(ours, papers).items():
        policy = SETTINGS[name].policy
        if policy.recipe and not (policy.gan_only and stage == "psnr"):
            unsaid = f"{policy.unsaid}; usrgan.toml: {theirs}"
            found[name] = (mine, unsaid if policy.unsaid else theirs)
    if found.pop("precision", None) and ours.precision != PAPER_PRECISION:
        found["precision"] = (ours.precision, PAPER_PRECISION)
    if not has_batch_statistics(ours):
        found.pop("accumulate", None)
    return found | {"data.augment": (AUGMENTATION[ours.data.augment], PAPER_AUGMENTATION)}
