"""The best weights of a stage, and those that it delivers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from trainer.config.schema import BestBy


def deliverable_metrics(best_by: BestBy, stage: Literal["psnr", "gan"]) -> tuple[str, ...]:
    """Return the metrics whose best weights a stage delivers, in order of preference; its final weights come last.

    A GAN gives up PSNR on purpose: its best weights by PSNR are often its start. Without LPIPS, the end of the
    stage is the better choice.
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
    """Return the metrics in which a validation beats the best so far, with the values to store for each.

    Args:
        found: the validation: `psnr_y`, `ssim_y`, possibly `lpips`.
        best: values stored so far.
        best_by: "both" adds the paper's rule as a metric: PSNR and SSIM above those of the last weights that it
            chose.
        psnr_drop: largest distance in dB of PSNR-Y below the best so far at which LPIPS chooses: a generator that
            invents detail can have a low distance, too. A stored best that falls below that floor is ignored.
        start_psnr_y: PSNR-Y of the stage's initial weights, part of the best so far; 0: unknown.
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
    """Remove a metric and its companions from the stored best values."""
    for name in [name for name in best if name.split(".")[0] == metric]:
        del best[name]
