"""Figures of a run as pure functions of the rows of its `metrics.jsonl`; `charts` draws them.

Figures 3 to 7 are those of the paper, and their names have its numbers. Others show gradient shares, throughput and
waiting time. Data without a curve (one epoch, no validation, a constant) makes no figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

MetricsRow = Mapping[str, object]
"""A line of `metrics.jsonl`: `stage`, `epoch`, then numbers."""
Mark = Literal["line", "smoothed", "scatter", "bars"]

AVERAGED_EPOCHS = 10
"""Window of the moving average (paper §7.2, figure 5)."""
REACHED_FRACTIONS = (0.70, 0.80, 0.90, 0.95, 0.99)
"""Fractions of the best value whose first epochs are shown (paper §7.2, figure 7)."""
LOG_AXIS_RATIO = 10.0
"""Ratio of the largest value to the smallest from which a loss has a logarithmic axis."""
RAW, SMOOTH = "each epoch", f"mean of {AVERAGED_EPOCHS} epochs"


class Point(NamedTuple):
    """A value, its place along the axis, and the line, bar or colour that shows it."""

    x: float | str
    y: float
    series: str
    star: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure to draw."""

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
    """True: the value axis begins at 0."""


def build_run_figures(rows: Sequence[MetricsRow]) -> list[Figure]:
    """Build the figures that show all stages side by side: figure 3, the pixel loss, throughput."""
    return [
        *_build_lines(rows, "figure-3-psnr", "PSNR over epochs", "PSNR-Y, dB", {"val_psnr_y": ""},
                "On held-out patches (the paper's figure 3)."),
        *_build_lines(rows, "figure-3-ssim", "SSIM over epochs", "SSIM-Y", {"val_ssim_y": ""},
                "On held-out patches (the paper's figure 3)."),
        *_build_lines(rows, "lpips", "LPIPS over epochs", "LPIPS", {"val_lpips": ""},
                "On held-out patches; lower is better."),
        *_build_lines(rows, "figure-4-pixel", "Pixel loss", "L1 of values in 0..1", {"loss_pixel": ""},
                "Eq. 1, unweighted; in stage psnr it is the whole loss.", log=True),
        *_build_lines(rows, "speed", "Throughput", "patches/s", {"patches_per_s": ""},
                "Training patches per second, without validation.", zero=True),
        *_build_lines(rows, "data-wait", "Wait for data", "% of the time", {"data_wait": ""},
                "Share of an epoch in which steps waited for their batches.", times=100, zero=True),
        *_build_lines(rows, "learning-rate", "Learning rate", "learning rate", {"lr": ""},
                "Learning rate of the generator at the end of each epoch."),
    ]  # fmt: skip


def build_stage_figures(rows: Sequence[MetricsRow], stage: str) -> list[Figure]:
    """Build the figures of one stage: figures 4 to 7, gradient shares and norms."""
    own = [row for row in rows if row["stage"] == stage]
    figures = [
        *_build_average(own, stage),
        *_build_psnr_against_ssim(own, stage),
        *_build_convergence(own, stage),
    ]
    if stage == "gan":
        figures += _build_gan_losses(own)
    return [*figures, *_build_diagnostics(own, stage)]


def find_balanced_epoch(points: Sequence[tuple[float, float, float]]) -> int | None:
    """Return the epoch with the best balance of PSNR and SSIM, from (epoch, PSNR, SSIM).

    The paper marks an epoch "having a good balance between normalized PSNR and SSIM" (§7.2, figure 6) and gives no
    rule. Here, both are normalised to 0..1 over the stage, and the epoch with the largest minimum of the two wins. Ties
    go to the larger sum, then to the earlier epoch. None where PSNR or SSIM is constant.
    """
    psnr, ssim = (_normalise([point[at] for point in points]) for at in (1, 2))
    if psnr is None or ssim is None:
        return None
    order = [
        (min(p, s), p + s, -number) for number, (p, s) in enumerate(zip(psnr, ssim, strict=True))
    ]
    return int(points[-max(order)[2]][0])


def average_epochs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean over the last 10 epochs of (epoch, value), or over fewer at the start."""
    averaged = []
    for epoch, _ in points:
        window = [value for at, value in points if epoch - AVERAGED_EPOCHS < at <= epoch]
        averaged.append((epoch, sum(window) / len(window)))
    return averaged


def find_reaching_epochs(points: Sequence[tuple[float, float]]) -> dict[float, int]:
    """Return the first epoch that reached each fraction of the best value, normalised over the stage."""
    values = _normalise([value for _, value in points])
    if values is None:
        return {}
    return {
        part: next(
            int(epoch) for (epoch, _), value in zip(points, values, strict=True) if value >= part
        )
        for part in REACHED_FRACTIONS
    }


def select_series(
    rows: Sequence[MetricsRow], key: str, *, times: float = 1.0
) -> list[tuple[float, float]]:
    """Return (epoch, value) of the rows that have a finite number under a key."""
    values = []
    for row in rows:
        epoch, value = row["epoch"], row.get(key)
        if _is_number(epoch) and _is_number(value):
            values.append((float(epoch), float(value) * times))  # type: ignore[arg-type]  # numbers
    return values


def _build_average(rows: Sequence[MetricsRow], stage: str) -> Iterator[Figure]:
    points = select_series(rows, "val_psnr_y")
    averaged = average_epochs(points)
    if len(points) > 2 and averaged != points:
        yield Figure(
            name=f"figure-5-{stage}",
            title="PSNR and its moving average",
            caption=f"Mean over {AVERAGED_EPOCHS} epochs (the paper's figure 5).",
            x="epoch",
            y="PSNR-Y, dB",
            points=(
                *(Point(epoch, value, RAW) for epoch, value in points),
                *(Point(epoch, value, SMOOTH) for epoch, value in averaged),
            ),
            mark="smoothed",
        )


def _build_psnr_against_ssim(rows: Sequence[MetricsRow], stage: str) -> Iterator[Figure]:
    ssim = dict(select_series(rows, "val_ssim_y"))
    points = [
        (epoch, value, ssim[epoch])
        for epoch, value in select_series(rows, "val_psnr_y")
        if epoch in ssim
    ]
    best = find_balanced_epoch(points) if len(points) > 2 else None
    if best is not None:
        yield Figure(
            name=f"figure-6-{stage}",
            title="PSNR against SSIM",
            caption=f"Each point is an epoch. The star marks epoch {best}, where the smaller of normalised PSNR and"
            " SSIM is largest (the paper's figure 6).",
            x="PSNR-Y, dB",
            y="SSIM-Y",
            points=tuple(Point(p, s, f"{epoch:g}", epoch == best) for epoch, p, s in points),
            mark="scatter",
        )


def _build_convergence(rows: Sequence[MetricsRow], stage: str) -> Iterator[Figure]:
    needed = {
        "PSNR-Y": find_reaching_epochs(select_series(rows, "val_psnr_y")),
        "SSIM-Y": find_reaching_epochs(select_series(rows, "val_ssim_y")),
    }
    if any(len(set(epochs.values())) > 1 for epochs in needed.values()):
        yield Figure(
            name=f"figure-7-{stage}",
            title="Epochs to reach a fraction of the best",
            caption="Values are normalised over the stage: 0 % is the worst epoch, 100 % the best (the paper's"
            " figure 7).",
            x="fraction of the range from worst to best epoch",
            y="epochs",
            points=tuple(
                Point(f"{part:.0%}".replace("%", " %"), epochs, metric)
                for metric, reached in needed.items()
                for part, epochs in reached.items()
            ),
            mark="bars",
            zero=True,
        )


def _build_gan_losses(rows: Sequence[MetricsRow]) -> Iterator[Figure]:
    yield from _build_lines(rows, "figure-4-generator", "Generator loss", "weighted sum",
                      {"loss_generator": ""}, "Eq. 5 (the paper's figure 4).", log=True)  # fmt: skip
    yield from _build_lines(rows, "figure-4-content", "Content loss", "feature difference",
                      {"loss_content": ""}, "Eq. 2, unweighted.", log=True)  # fmt: skip
    yield from _build_lines(rows, "figure-4-adversarial", "Adversarial and discriminator loss", "loss",
                      {"loss_adversarial": "adversarial", "loss_discriminator": "discriminator"},
                      "Eq. 3 and 4, unweighted. A standard discriminator that guesses has 0.69 and 1.39.",
                      log=True)  # fmt: skip
    yield from _build_lines(rows, "judgement", "Discriminator confidence", "probability of real",
                      {"loss_d_real": "HR", "loss_d_fake": "SR"},
                      "Mean over an epoch. Both at 0.5: HR and SR look alike to it. Far apart: it separates them.",
                      zero=True)  # fmt: skip


def _build_diagnostics(rows: Sequence[MetricsRow], stage: str) -> Iterator[Figure]:
    parts = {f"share_{name}": name for name in ("pixel", "content", "adversarial")}
    yield from _build_lines(rows, f"gradient-shares-{stage}", "Gradient shares of the losses",
                      "% of the gradient", parts,
                      "Share of each weighted loss in the gradient norms at the generator's output.",
                      times=100, zero=True)  # fmt: skip
    norms = {f"grad_norm_{name}": name for name in ("generator", "discriminator")}
    yield from _build_lines(rows, f"gradient-norms-{stage}", "Gradient norms", "norm", norms,
                      "Norm of the gradient over all weights of a network.", log=True)  # fmt: skip
    yield from _build_lines(rows, f"sigma-{stage}", "Spectral normalisation", "largest singular value",
                      {"sigma_max": ""}, "Of the normalised discriminator weights; about 1.")  # fmt: skip


def _build_lines(
    rows: Sequence[MetricsRow], name: str, title: str, y: str, keys: Mapping[str, str], caption: str,
    *, times: float = 1.0, zero: bool = False, log: bool = False,
) -> Iterator[Figure]:  # fmt: skip
    """Yield a figure of values over epochs; a key without a label makes one line per stage."""
    lines: list[list[Point]] = []
    for stage in dict.fromkeys(str(row["stage"]) for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        for key, label in keys.items():
            line = select_series(own, key, times=times)
            lines.append([Point(epoch, value, label or f"stage {stage}") for epoch, value in line])
    # a lone point is worth drawing only beside a line
    if max(map(len, lines), default=0) < 2:
        return
    points = [point for line in lines for point in line]
    values = [point.y for point in points]
    if values and (max(values) > min(values) or zero):
        spread = log and min(values) > 0 and max(values) / min(values) > LOG_AXIS_RATIO
        yield Figure(name, title, caption, "epoch", y, tuple(points), log=spread, zero=zero)


def _normalise(values: Sequence[float]) -> list[float] | None:
    """Return values scaled to 0..1; None where all are equal."""
    if not values or max(values) == min(values):
        return None
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
