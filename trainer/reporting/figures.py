"""The figures of a run as pure functions of the rows of its `metrics.jsonl`.

Figures 3 to 7 are the paper's, with its numbers in their names; the others show what it does not:
who pulls at the generator, how fast it went, how long it waited. What cannot be drawn (one epoch,
nothing validated, a number that never changed) is no figure. `charts` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Row = Mapping[str, object]
"""A line of `metrics.jsonl`: `stage`, `epoch`, then numbers."""
Mark = Literal["line", "smoothed", "scatter", "bars"]

WINDOW_EPOCHS = 10
"""Window of the moving average (paper §7.2, figure 5)."""
REACHED = (0.70, 0.80, 0.90, 0.95, 0.99)
"""Parts of the best value whose epochs are counted (paper §7.2, figure 7)."""
LOG_FROM = 10.0
"""A loss is drawn on a logarithmic axis where its values span more than this ratio."""
RAW, SMOOTH = "each epoch", f"mean of {WINDOW_EPOCHS} epochs"


class Point(NamedTuple):
    """One value: a place along the axis, and which line, bar or colour it belongs to."""

    x: float | str
    y: float
    series: str
    star: bool = False


@dataclass(frozen=True)
class Figure:
    """Data and titles of one figure."""

    name: str
    """Name of its file: `figure-3-psnr`."""
    title: str
    caption: str
    x: str
    """Axis title with unit."""
    y: str
    points: tuple[Point, ...]
    mark: Mark = "line"
    log: bool = False
    zero: bool = False
    """The axis begins at 0."""


def figures_of_run(rows: Sequence[Row]) -> list[Figure]:
    """Return the figures that show both stages: figure 3, the pixel loss, speed."""
    return [
        *_lines(rows, "figure-3-psnr", "PSNR over epochs", "PSNR-Y, dB", {"val_psnr_y": ""},
                "On held-out patches (the paper's figure 3)."),
        *_lines(rows, "figure-3-ssim", "SSIM over epochs", "SSIM-Y", {"val_ssim_y": ""},
                "On held-out patches (the paper's figure 3)."),
        *_lines(rows, "lpips", "LPIPS over epochs", "LPIPS", {"val_lpips": ""},
                "On held-out patches; lower is better."),
        *_lines(rows, "figure-4-pixel", "Pixel loss", "L1 of values in 0..1", {"loss_pixel": ""},
                "Eq. 1, unweighted; in stage psnr it is the whole loss.", log=True),
        *_lines(rows, "speed", "Throughput", "patches/s", {"patches_per_s": ""},
                "Training patches in a second, validation not counted.", zero=True),
        *_lines(rows, "data-wait", "Waiting for data", "% of the time", {"data_wait": ""},
                "How long the steps of an epoch waited for their batches.", times=100, zero=True),
        *_lines(rows, "learning-rate", "Learning rate", "learning rate", {"lr": ""},
                "Of the generator at the end of each epoch."),
    ]  # fmt: skip


def figures_of_stage(rows: Sequence[Row], stage: str) -> list[Figure]:
    """Return the figures of one stage: figures 4 to 7, and gradient shares."""
    own = [row for row in rows if row["stage"] == stage]
    found = [*_smoothed(own, stage), *_relation(own, stage), *_convergence(own, stage)]
    if stage == "gan":
        found += _losses(own)
    return [*found, *_telemetry(own, stage)]


def balanced(points: Sequence[tuple[float, float, float]]) -> int | None:
    """The epoch with the best balance of PSNR and SSIM, out of (epoch, PSNR, SSIM).

    The paper stars an epoch "having a good balance between normalized PSNR and SSIM" (§7.2, figure
    6) and does not say how it was found. Here: both are scaled to 0..1 over the stage, and the
    epoch wins whose smaller one is largest; of equals, the one with the larger sum, then the first.
    None where either never changed.
    """
    psnr, ssim = (_normalised([point[at] for point in points]) for at in (1, 2))
    if psnr is None or ssim is None:
        return None
    order = [
        (min(p, s), p + s, -number) for number, (p, s) in enumerate(zip(psnr, ssim, strict=True))
    ]
    return int(points[-max(order)[2]][0])


def moving_average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over the last 10 epochs of (epoch, value), over fewer where there are not as many yet."""
    averaged = []
    for epoch, _ in points:
        window = [value for at, value in points if epoch - WINDOW_EPOCHS < at <= epoch]
        averaged.append((epoch, sum(window) / len(window)))
    return averaged


def epochs_needed(points: Sequence[tuple[float, float]]) -> dict[float, int]:
    """The first epoch that reached each part of the best value, normalised over the stage."""
    values = _normalised([value for _, value in points])
    if values is None:
        return {}
    return {
        part: next(
            int(epoch) for (epoch, _), value in zip(points, values, strict=True) if value >= part
        )
        for part in REACHED
    }


def series(rows: Sequence[Row], key: str, *, times: float = 1.0) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have a finite number there."""
    found = []
    for row in rows:
        epoch, value = row["epoch"], row.get(key)
        if _number(epoch) and _number(value):
            found.append((float(epoch), float(value) * times))  # type: ignore[arg-type]  # numbers
    return found


def _smoothed(rows: Sequence[Row], stage: str) -> Iterator[Figure]:
    points = series(rows, "val_psnr_y")
    averaged = moving_average(points)
    if len(points) > 2 and averaged != points:
        yield Figure(
            name=f"figure-5-{stage}",
            title="PSNR and its moving average",
            caption=f"The mean of {WINDOW_EPOCHS} epochs shows the trend (the paper's figure 5).",
            x="epoch",
            y="PSNR-Y, dB",
            points=(
                *(Point(epoch, value, RAW) for epoch, value in points),
                *(Point(epoch, value, SMOOTH) for epoch, value in averaged),
            ),
            mark="smoothed",
        )


def _relation(rows: Sequence[Row], stage: str) -> Iterator[Figure]:
    ssim = dict(series(rows, "val_ssim_y"))
    points = [
        (epoch, value, ssim[epoch]) for epoch, value in series(rows, "val_psnr_y") if epoch in ssim
    ]
    best = balanced(points) if len(points) > 2 else None
    if best is not None:
        yield Figure(
            name=f"figure-6-{stage}",
            title="PSNR against SSIM",
            caption=f"Each point is an epoch; the star is the best balanced one, epoch {best}: the smaller of"
            " normalised PSNR and SSIM is largest there (the paper's figure 6).",
            x="PSNR-Y, dB",
            y="SSIM-Y",
            points=tuple(Point(p, s, f"{epoch:g}", epoch == best) for epoch, p, s in points),
            mark="scatter",
        )


def _convergence(rows: Sequence[Row], stage: str) -> Iterator[Figure]:
    needed = {
        "PSNR-Y": epochs_needed(series(rows, "val_psnr_y")),
        "SSIM-Y": epochs_needed(series(rows, "val_ssim_y")),
    }
    if any(len(set(epochs.values())) > 1 for epochs in needed.values()):
        yield Figure(
            name=f"figure-7-{stage}",
            title="Epochs to reach a part of the best",
            caption="Values normalised over the stage: 0 % is its worst epoch, 100 % its best (the paper's"
            " figure 7).",
            x="part of the way from the worst epoch to the best",
            y="epochs",
            points=tuple(
                Point(f"{part:.0%}".replace("%", " %"), epochs, metric)
                for metric, reached in needed.items()
                for part, epochs in reached.items()
            ),
            mark="bars",
            zero=True,
        )


def _losses(rows: Sequence[Row]) -> Iterator[Figure]:
    yield from _lines(rows, "figure-4-generator", "Generator's loss", "weighted sum",
                      {"loss_generator": ""}, "Eq. 5 (the paper's figure 4).", log=True)  # fmt: skip
    yield from _lines(rows, "figure-4-content", "Content loss", "difference of features",
                      {"loss_content": ""}, "Eq. 2, unweighted.", log=True)  # fmt: skip
    yield from _lines(rows, "figure-4-adversarial", "Adversarial and discriminator's loss", "loss",
                      {"loss_adversarial": "adversarial", "loss_discriminator": "discriminator"},
                      "Eq. 3 and 4, unweighted; 0.69 and 1.39: a standard discriminator that guesses.",
                      log=True)  # fmt: skip
    yield from _lines(rows, "judgement", "What the discriminator believes", "probability of real",
                      {"loss_d_real": "of HR", "loss_d_fake": "of SR"},
                      "Mean over the patches of an epoch; both 0.5: it cannot tell; far apart: it has won.",
                      zero=True)  # fmt: skip


def _telemetry(rows: Sequence[Row], stage: str) -> Iterator[Figure]:
    parts = {f"share_{name}": name for name in ("pixel", "content", "adversarial")}
    yield from _lines(rows, f"gradient-shares-{stage}", "Who pulls at the generator",
                      "% of the gradient", parts,
                      "Each weighted loss's part of the gradient norms at the generator's output.",
                      times=100, zero=True)  # fmt: skip
    norms = {f"grad_norm_{name}": name for name in ("generator", "discriminator")}
    yield from _lines(rows, f"gradient-norms-{stage}", "Gradient norms", "norm", norms,
                      "Over all weights of the network.", log=True)  # fmt: skip
    yield from _lines(rows, f"sigma-{stage}", "Spectral normalisation", "largest singular value",
                      {"sigma_max": ""}, "Of the discriminator's weights as used: about 1.")  # fmt: skip


def _lines(
    rows: Sequence[Row], name: str, title: str, y: str, keys: Mapping[str, str], caption: str,
    *, times: float = 1.0, zero: bool = False, log: bool = False,
) -> Iterator[Figure]:  # fmt: skip
    """Values over epochs; a key without a label of its own makes a line for each stage."""
    lines: list[list[Point]] = []
    for stage in dict.fromkeys(str(row["stage"]) for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        for key, label in keys.items():
            line = series(own, key, times=times)
            lines.append([Point(epoch, value, label or f"stage {stage}") for epoch, value in line])
    # a point beside a line tells something, alone it does not
    if max(map(len, lines), default=0) < 2:
        return
    points = [point for line in lines for point in line]
    values = [point.y for point in points]
    if values and (max(values) > min(values) or zero):
        spread = log and min(values) > 0 and max(values) / min(values) > LOG_FROM
        yield Figure(name, title, caption, "epoch", y, tuple(points), log=spread, zero=zero)


def _normalised(values: Sequence[float]) -> list[float] | None:
    """Scaled to 0..1; None where all are equal."""
    if not values or max(values) == min(values):
        return None
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
