"""Models and baselines on image sets: the rows of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from shards.errors import UsrganError
from shards.format.png import RGB8
from shards.images import resize
from trainer.device import explain_out_of_memory
from trainer.evaluation import spectrum
from trainer.evaluation.comparison import SheetColumn, write_comparison_sheet
from trainer.evaluation.metrics import PROTOCOL, score
from trainer.evaluation.test_sets import ImageSet
from trainer.perceptual.metric import PerceptualMetric

PUBLISHED_SCORES = {
    "set5": (28.43, 0.8111),
    "set14": (26.09, 0.7050),
    "b100": (25.96, 0.668),
    "bsd100": (25.96, 0.668),
    "bsds100": (25.96, 0.668),
    "urban100": (23.14, 0.658),
}
"""PSNR-Y in dB and SSIM-Y of bicubic x4 on the standard sets, by the protocol of `metrics`."""
PUBLISHED_DB_TOLERANCE, PUBLISHED_SSIM_TOLERANCE = 0.02, 0.001
"""How far a bicubic row may be from them."""
SCORES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
VALUES = (*SCORES, "lpips", "dists", *spectrum.NAMES)
Upscaler = Callable[[RGB8], RGB8]
"""LR picture [h w 3] to SR picture [h*scale w*scale 3]."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table: means over a set; from `lpips` on, those that were asked for."""

    set: str
    model: str
    images: int
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float
    per_image: list[dict[str, str | float]]
    lpips: float | UnsetType = UNSET
    dists: float | UnsetType = UNSET
    gradient: float | UnsetType = UNSET
    band_1: float | UnsetType = UNSET
    band_2: float | UnsetType = UNSET
    band_3: float | UnsetType = UNSET
    band_4: float | UnsetType = UNSET


def evaluate(
    found: ImageSet,
    models: Sequence[tuple[str, Upscaler]],
    *,
    scale: int,
    judges: Sequence[PerceptualMetric],
    detail: bool,
    strips: Path | None,
    advance: Callable[[int, str], None],
) -> list[Row]:
    """Score every model on every picture of a set, with `detail` its spectrum, too; each picture is read once.

    Raises:
        UsrganError: a picture cannot be scored, or memory does not hold it; names it.
    """
    scores: list[list[dict[str, str | float]]] = [[] for _ in models]
    for picture in found.pictures():
        shown = []
        asked = {judge.name: judge.metric_for(picture.hr) for judge in judges}
        levels = spectrum.detail_against(picture.hr, crop=scale) if detail else None
        for number, (model, upscaler) in enumerate(models):
            what = f"{model} of {found.name}/{picture.name}"
            with explain_out_of_memory(what, fix="free some, or leave this picture out"):
                sr = upscaler(picture.lr)
            try:
                values = _scores(sr, picture.hr, scale=scale, asked=asked)
                values |= levels(sr) if levels else {}
            except UsrganError as error:
                raise UsrganError(f"{found.name}/{picture.name}: {error}") from None
            scores[number].append({"image": picture.name, **values})
            shown.append(
                SheetColumn(model, sr, f"{values['psnr_y']:.2f} dB  {values['ssim_y']:.4f}")
            )
        if strips:
            write_comparison_sheet(strips / f"{found.name}-{picture.name}.png", picture, shown)
        advance(1, picture.name)
    return [_row(found, model, each) for (model, _), each in zip(models, scores, strict=True)]


def baseline(kernel: resize.Enlargement, *, scale: int) -> Upscaler:
    """An enlargement that learnt nothing."""
    return lambda lr: resize.upscale(lr, scale=scale, kernel=kernel)


def protocol(judges: Iterable[PerceptualMetric], *, detail: bool) -> str:
    """What the numbers of a table are: nobody can compare them without."""
    more = (spectrum.PROTOCOL,) if detail else ()
    return "; ".join((PROTOCOL, *(judge.protocol for judge in judges), *more))


def published_score(row: Row, *, scale: int) -> tuple[float, float] | None:
    """The published numbers of a row, if it is bicubic x4 on a standard set."""
    name = row.set.lower().removesuffix("hr").rstrip("_-")
    return PUBLISHED_SCORES.get(name) if row.model == "bicubic" and scale == 4 else None


def matches_published(row: Row, anchor: tuple[float, float]) -> bool:
    """Whether a row is its anchor, within the last digits."""
    psnr, ssim = anchor
    return (
        abs(row.psnr_y - psnr) <= PUBLISHED_DB_TOLERANCE
        and abs(row.ssim_y - ssim) <= PUBLISHED_SSIM_TOLERANCE
    )


def missed_anchors(rows: Sequence[Row], *, scale: int) -> list[str]:
    """What to tell a person whose bicubic row on a standard set is not the field's number."""
    return [
        f"{row.set}: bicubic is {row.psnr_y:.2f} dB / {row.ssim_y:.4f} here and {anchor[0]} / {anchor[1]}"
        " in the literature; these are other pictures, or other LR"
        for row in rows
        if (anchor := published_score(row, scale=scale)) and not matches_published(row, anchor)
    ]


def _scores(
    sr: RGB8, hr: RGB8, *, scale: int, asked: Mapping[str, Callable[[RGB8], float]]
) -> dict[str, float]:
    found = score(sr, hr, crop=scale)
    own = {name: float(getattr(found, name)) for name in SCORES}
    return own | {name: distance(sr) for name, distance in asked.items()}


def _row(found: ImageSet, model: str, scores: list[dict[str, str | float]]) -> Row:
    means = {
        name: float(np.mean([each[name] for each in scores]))
        for name in VALUES
        if name in scores[0]
    }
    return Row(set=found.name, model=model, images=len(scores), per_image=scores, **means)
