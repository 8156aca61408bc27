"""The rows of an evaluation as Markdown and CSV; each table says by which protocol it was made."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from trainer.evaluation.evaluate import VALUES, Row, matches_published, published_score
from trainer.evaluation.spectrum import NAMES
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


def shown_values(rows: Sequence[Row]) -> list[str]:
    """Which of the values these rows have."""
    return [name for name in VALUES if isinstance(getattr(rows[0], name), float)]


def format_value(name: str, value: float) -> str:
    """Two digits of a decibel, one of a level in dB, four of anything else."""
    if name in NAMES:
        return f"{value:+.1f}"
    return f"{value:.2f}" if name.startswith("psnr") else f"{value:.4f}"


def markdown(
    sets: Sequence[ImageSet],
    rows: Sequence[Sequence[Row]],
    *,
    scale: int,
    protocol: str,
    per_image: bool,
) -> str:
    """One table for each set, as in the paper; `rows` are those of each set."""
    blocks = [
        "\n".join(
            (_heading(found, own, scale=scale), "", *_set_table(own), *_image_table(own, per_image))
        )
        for found, own in zip(sets, rows, strict=True)
    ]
    return "\n\n".join((*blocks, f"Protocol: {protocol}"))


def csv_text(rows: Sequence[Row], *, protocol: str, per_image: bool) -> str:
    """One line for each row, or for each picture and then the mean; the protocol is a column."""
    names = shown_values(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    image = ["image"] if per_image else []
    writer.writerow(["set", "model", *image, "images", *names, "protocol"])
    for row in rows:
        head = [row.set, row.model]
        for each in row.per_image if per_image else []:
            writer.writerow([*head, each["image"], 1, *(each[name] for name in names), protocol])
        mean = ["mean"] if per_image else []
        values = [getattr(row, name) for name in names]
        writer.writerow([*head, *mean, row.images, *values, protocol])
    return stream.getvalue().rstrip("\n")


def _heading(found: ImageSet, rows: Sequence[Row], *, scale: int) -> str:
    images = f"{found.images} image{'s' * (found.images != 1)}"
    parts = [f"**{_cell(rows[0].set)}**", f"x{scale}", images, f"LR: {_cell(found.lr_from)}"]
    anchor = published_score(rows[0], scale=scale)
    if anchor:
        parts.append(
            "bicubic is as published"
            if matches_published(rows[0], anchor)
            else "bicubic is NOT as published"
        )
    return " · ".join(parts) + "".join(f"  \n{note}" for note in found.notes)


def _set_table(rows: Sequence[Row]) -> Iterator[str]:
    names = shown_values(rows)
    lines = [
        [row.model, *(format_value(name, getattr(row, name)) for name in names)] for row in rows
    ]
    yield from _table(["model", *(TITLES[name] for name in names)], lines, left=1)


def _image_table(rows: Sequence[Row], wanted: bool) -> Iterator[str]:
    if not wanted:
        return
    names = shown_values(rows)
    lines = [
        [str(each["image"]), row.model, *(format_value(name, float(each[name])) for name in names)]
        for images in zip(*(row.per_image for row in rows), strict=True)
        for row, each in zip(rows, images, strict=True)
    ]
    yield ""
    yield from _table(["image", "model", *(TITLES[name] for name in names)], lines, left=2)


def _table(titles: list[str], lines: list[list[str]], *, left: int) -> Iterator[str]:
    """A Markdown table whose columns also line up as text; `left` of them to the left."""
    cells = [titles, *([_cell(cell) for cell in line] for line in lines)]
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
