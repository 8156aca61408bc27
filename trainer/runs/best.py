"""Which weights of a stage are the best, and which it hands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from trainer.config.schema import BestBy


def deliverable_metrics(best_by: BestBy, stage: Literal["psnr", "gan"]) -> tuple[str, ...]:
    """What a stage hands on: best metrics in order of preference; after them come its final weights.

    A GAN gives up PSNR on purpose, so the best of its weights by PSNR are the least of a GAN, and
    often its start. Where LPIPS is not measured, the end of the stage is the better guess.
    """
    match best_by:
        case "auto":
            return ("psnr_y",) if stage == "psnr" else ("lpips",)
        case "final":
            return ()
        case metric:
            return (metric,)


def find_improvements(
    found: Mapping[str, float],
    best: Mapping[str, float],
    *,
    best_by: BestBy,
    psnr_drop: float,
    start_psnr_y: float,
) -> dict[str, dict[str, float]]:
    """The metrics in which a validation beats the best so far, and what to remember of each.

    Args:
        found: the validation: `psnr_y`, `ssim_y`, perhaps `lpips`.
        best: what was remembered before.
        best_by: under "both" the paper's rule is kept as a metric of its own: PSNR and SSIM above those
            of the last weights that it chose.
        psnr_drop: dB that PSNR-Y may lie below the best so far where LPIPS chooses: a generator that
            paints what is not there can have a low distance, too. Weights that a better PSNR leaves
            below that floor are no longer to be beaten.
        start_psnr_y: PSNR-Y of the weights that the stage began with, which belongs to the best so far; 0: not known.
    """
    won = {
        metric: {metric: found[metric]}
        for metric in ("psnr_y", "ssim_y")
        if found[metric] > best.get(metric, -math.inf)
    }
    psnr, ssim = found["psnr_y"], found["ssim_y"]
    if (
        best_by == "both"
        and psnr > best.get("both", -math.inf)
        and ssim > best.get("both.ssim_y", -math.inf)
    ):
        won["both"] = {"both": psnr, "both.ssim_y": ssim}
    floor = max(psnr, best.get("psnr_y", -math.inf), start_psnr_y) - psnr_drop
    stands = best.get("lpips.psnr_y", -math.inf) >= floor
    lowest = best["lpips"] if stands else math.inf
    if "lpips" in found and psnr >= floor and found["lpips"] < lowest:
        won["lpips"] = {"lpips": found["lpips"], "lpips.psnr_y": psnr}
    return won


def forget_metric(best: dict[str, float], metric: str) -> None:
    """Remember nothing of a metric any more."""
    for name in [name for name in best if name.split(".")[0] == metric]:
        del best[name]
