"""Scores of models and baselines on test sets: the rows of the paper's Table 1."""

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
"""Published PSNR-Y in dB and SSIM-Y of bicubic x4 on the standard sets, by the protocol of `metrics`."""
PUBLISHED_DB_TOLERANCE, PUBLISHED_SSIM_TOLERANCE = 0.02, 0.001
"""Allowed difference of a bicubic row from the published scores, in dB and in SSIM."""
SCORE_NAMES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
VALUE_NAMES = (*SCORE_NAMES, "lpips", "dists", *spectrum.DETAIL_NAMES)
"""Columns of the tables, in their order."""
Upscaler = Callable[[RGB8], RGB8]
"""Function from an LR image [h w 3] to its SR image [h*scale w*scale 3]."""


class Row(msgspec.Struct, frozen=True):
    """Table row: mean scores of one model over a test set; `lpips` and later ones only if requested."""

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


def score_models(
    test_set: ImageSet,
    models: Sequence[tuple[str, Upscaler]],
    *,
    scale: int,
    metrics: Sequence[PerceptualMetric],
    detail: bool,
    sheets: Path | None,
    advance: Callable[[int, str], None],
) -> list[Row]:
    """Return one row for each model; every image of the set is read once.

    Args:
        test_set: HR images with their LR.
        models: label and upscaler of each row.
        scale: HR side over LR side; also the border that the scores leave out, in pixels.
        metrics: perceptual metrics, one more column each.
        detail: whether to add the spectral columns.
        sheets: folder for comparison sheets; None writes none.
        advance: called after each image with 1 and its name.

    Raises:
        UsrganError: an image cannot be scored or does not fit into memory; names the image.
    """
    scores: list[list[dict[str, str | float]]] = [[] for _ in models]
    for pair in test_set.read_pairs():
        columns = []
        distances = {metric.name: metric.metric_for(pair.hr) for metric in metrics}
        measure_detail = spectrum.detail_metric_for(pair.hr, crop=scale) if detail else None
        for number, (model, upscaler) in enumerate(models):
            subject = f"{model} of {test_set.name}/{pair.name}"
            with explain_out_of_memory(subject, fix="free memory, or remove this image"):
                sr = upscaler(pair.lr)
            try:
                values = _score_image(sr, pair.hr, scale=scale, distances=distances)
                values |= measure_detail(sr) if measure_detail else {}
            except UsrganError as error:
                raise UsrganError(f"{test_set.name}/{pair.name}: {error}") from None
            scores[number].append({"image": pair.name, **values})
            caption = f"{values['psnr_y']:.2f} dB  {values['ssim_y']:.4f}"
            columns.append(SheetColumn(model, sr, caption))
        if sheets:
            write_comparison_sheet(sheets / f"{test_set.name}-{pair.name}.png", pair, columns)
        advance(1, pair.name)
    return [
        _average_row(test_set, model, own) for (model, _), own in zip(models, scores, strict=True)
    ]


def build_baseline(kernel: resize.Enlargement, *, scale: int) -> Upscaler:
    """Return an upscaler that interpolates with a fixed kernel."""
    return lambda lr: resize.upscale(lr, scale=scale, kernel=kernel)


def describe_protocol(metrics: Iterable[PerceptualMetric], *, detail: bool) -> str:
    """Return the protocol of all scores of a table, which makes them comparable with other tables."""
    more = (spectrum.PROTOCOL,) if detail else ()
    return "; ".join((PROTOCOL, *(metric.protocol for metric in metrics), *more))


def published_score(row: Row, *, scale: int) -> tuple[float, float] | None:
    """Return the published PSNR-Y in dB and SSIM-Y of a row, or None unless it is bicubic x4 on a standard set."""
    name = row.set.lower().removesuffix("hr").rstrip("_-")
    return PUBLISHED_SCORES.get(name) if row.model == "bicubic" and scale == 4 else None


def matches_published(row: Row, published: tuple[float, float]) -> bool:
    """Return whether a row equals its published PSNR-Y and SSIM-Y within the tolerances."""
    psnr, ssim = published
    return (
        abs(row.psnr_y - psnr) <= PUBLISHED_DB_TOLERANCE
        and abs(row.ssim_y - ssim) <= PUBLISHED_SSIM_TOLERANCE
    )


def list_baseline_mismatches(rows: Sequence[Row], *, scale: int) -> list[str]:
    """Return a warning for each bicubic row on a standard set that differs from the published scores."""
    return [
        f"{row.set}: bicubic is {row.psnr_y:.2f} dB / {row.ssim_y:.4f} here and {published[0]} / {published[1]}"
        " in the literature; the HR or LR images differ from the published set; download it again"
        for row in rows
        if (published := published_score(row, scale=scale))
        and not matches_published(row, published)
    ]


def _score_image(
    sr: RGB8, hr: RGB8, *, scale: int, distances: Mapping[str, Callable[[RGB8], float]]
) -> dict[str, float]:
    scores = score(sr, hr, crop=scale)
    values = {name: float(getattr(scores, name)) for name in SCORE_NAMES}
    return values | {name: distance(sr) for name, distance in distances.items()}


def _average_row(test_set: ImageSet, model: str, scores: list[dict[str, str | float]]) -> Row:
    means = {
        name: float(np.mean([image[name] for image in scores]))
        for name in VALUE_NAMES
        if name in scores[0]
    }
    return Row(set=test_set.name, model=model, images=len(scores), per_image=scores, **means)
