"""Rows of an evaluation as Markdown and CSV, with their protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from trainer.evaluation.evaluate import VALUE_NAMES, Row, matches_published, published_score
from trainer.evaluation.spectrum import DETAIL_NAMES
from trainer.evaluation.test_sets import ImageSet

TITLES = {
    "psnr_y": "PSNR-Y",
    "ssim_y": "SSIM-Y",
    "psnr_rgb": "PSNR-RGB",
    "ssim_rgb": "SSIM-RGB",
    "lpips": "LPIPS",
    "dists": "DISTS",
    "gradient": "gradient",
    "band_1": "to 1/4",
    "band_2": "to 1/2",
    "band_3": "to 3/4",
    "band_4": "to 1",
}


def list_value_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the values that these rows have, in the order of the columns."""
    return [name for name in VALUE_NAMES if isinstance(getattr(rows[0], name), float)]


def format_value(name: str, value: float) -> str:
    """Return a value as text: PSNR with two decimals, spectral levels with one, others with four."""
    if name in DETAIL_NAMES:
        return f"{value:+.1f}"
    return f"{value:.2f}" if name.startswith("psnr") else f"{value:.4f}"


def format_markdown(
    sets: Sequence[ImageSet],
    rows: Sequence[Sequence[Row]],
    *,
    scale: int,
    protocol: str,
    per_image: bool,
) -> str:
    """Return one Markdown table for each set, and the protocol; `rows` holds the rows of each set."""
    blocks = [
        "\n".join(
            (
                _format_heading(test_set, own, scale=scale),
                "",
                *_format_set_table(own),
                *(_format_image_table(own) if per_image else ()),
            )
        )
        for test_set, own in zip(sets, rows, strict=True)
    ]
    return "\n\n".join((*blocks, f"Protocol: {protocol}"))


def format_csv(rows: Sequence[Row], *, protocol: str, per_image: bool) -> str:
    """Return CSV with one line for each row, with `per_image` also for each image; the protocol is a column."""
    names = list_value_names(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    image = ["image"] if per_image else []
    writer.writerow(["set", "model", *image, "images", *names, "protocol"])
    for row in rows:
        head = [row.set, row.model]
        for scores in row.per_image if per_image else []:
            values = [scores[name] for name in names]
            writer.writerow([*head, scores["image"], 1, *values, protocol])
        mean = ["mean"] if per_image else []
        means = [getattr(row, name) for name in names]
        writer.writerow([*head, *mean, row.images, *means, protocol])
    return stream.getvalue().rstrip("\n")


def _format_heading(test_set: ImageSet, rows: Sequence[Row], *, scale: int) -> str:
    images = f"{test_set.images} image{'s' * (test_set.images != 1)}"
    lr_source = f"LR: {_escape_cell(test_set.lr_source)}"
    parts = [f"**{_escape_cell(rows[0].set)}**", f"x{scale}", images, lr_source]
    published = published_score(rows[0], scale=scale)
    if published:
        parts.append(
            "bicubic is as published"
            if matches_published(rows[0], published)
            else "bicubic is NOT as published"
        )
    return " · ".join(parts) + "".join(f"  \n{note}" for note in test_set.notes)


def _format_set_table(rows: Sequence[Row]) -> Iterator[str]:
    names = list_value_names(rows)
    lines = [
        [row.model, *(format_value(name, getattr(row, name)) for name in names)] for row in rows
    ]
    yield from _format_table(["model", *(TITLES[name] for name in names)], lines, left=1)


def _format_image_table(rows: Sequence[Row]) -> Iterator[str]:
    names = list_value_names(rows)
    lines = [
        [
            str(scores["image"]),
            row.model,
            *(format_value(name, float(scores[name])) for name in names),
        ]
        for image in zip(*(row.per_image for row in rows), strict=True)
        for row, scores in zip(rows, image, strict=True)
    ]
    yield ""
    yield from _format_table(["image", "model", *(TITLES[name] for name in names)], lines, left=2)


def _format_table(titles: list[str], lines: list[list[str]], *, left: int) -> Iterator[str]:
    """Yield the lines of a Markdown table with aligned columns; the first `left` columns are left-aligned."""
    cells = [titles, *([_escape_cell(cell) for cell in line] for line in lines)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(titles))]
    rule = [
        "-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)
    ]
    for line in (cells[0], rule, *cells[1:]):
        padded = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield f"| {' | '.join(padded)} |"


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")
