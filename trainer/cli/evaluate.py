"""`eval-sr`: PSNR and SSIM of models and baselines on image sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from shards import console, files
from shards.errors import UsageError
from shards.progress import progress

if TYPE_CHECKING:
    from trainer.evaluate import ImageSet, Row, Upscaler


@console.command(
    "eval-sr",
    example="eval-sr --hr Set5/HR --lr Set5/LRx4 --model runs/usrgan/checkpoints/best-psnr_y/gan.safetensors\n"
    "eval-sr --shards shards/ --json",
)
@click.option(
    "--hr", "hrs", multiple=True, type=console.FilePath(),
    help="Folder of HR pictures (repeatable).",
)  # fmt: skip
@click.option(
    "--lr", "lrs", multiple=True, type=console.FilePath(),
    help="Folder of their LR pictures, one for each --hr.  [default: antialiased bicubic of the HR]",
)  # fmt: skip
@click.option("--shards", type=console.FilePath(), help="Score the held-out patches there.")
@click.option(
    "--model", "models", multiple=True, type=console.FilePath(),
    help="Weights, .safetensors (repeatable).",
)  # fmt: skip
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Choice(["bicubic"]), default=("bicubic",),
    show_default=True, help="Always in the table.",
)  # fmt: skip
@click.option(
    "--scale", type=click.Choice(["2", "3", "4", "8"]), help="[default: the model's, or 4]"
)
@click.option(
    "--strips", type=console.FilePath(), metavar="DIR",
    help="Write every picture there as each row of the table made it, and the truth.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def eval_main(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, models: tuple[Path, ...],
    baselines: tuple[str, ...], scale: str | None, strips: Path | None, device: str, *, as_json: bool,
) -> None:  # fmt: skip
    """Score models and bicubic by PSNR and SSIM, on luma and on RGB.

    The protocol is that of the field's tables and is printed with the numbers.
    """
    from trainer.evaluate import bicubic, evaluate, folder_set, missed_anchors, shards_set
    from trainer.metrics import PROTOCOL

    if not hrs and shards is None:
        raise UsageError("--hr: name a folder of HR pictures, or --shards a data set")
    if lrs and len(lrs) != len(hrs):
        raise UsageError(f"--lr: {len(lrs)} given for {len(hrs)} --hr; give one for each or none")
    if strips:
        files.check_folder(strips, option="--strips")
        for folder in (*hrs, *lrs):
            if strips.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"--strips {strips}: lies in {folder}, whose pictures are scored; name another folder"
                )
    rows: list[Row] = []
    upscalers, factor = _upscalers(models, scale, device)
    entries = [*((name, bicubic(factor)) for name in dict.fromkeys(baselines)), *upscalers]
    sets: list[ImageSet] = [
        folder_set(hr, lrs[number] if lrs else None, scale=factor) for number, hr in enumerate(hrs)
    ]
    if shards is not None:
        sets.append(shards_set(shards, scale=factor))
    names = [found.name for found in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if strips and twice:
        raise UsageError(
            f"--strips {strips}: two sets are called {twice}; write their strips in two runs"
        )
    for found in sets:
        with progress(found.name, total=found.images, unit="images") as advance:
            rows += evaluate(found, entries, scale=factor, strips=strips, advance=advance)
    warnings = missed_anchors(rows, scale=factor)
    rows = [_printable(row) for row in rows]
    if as_json:
        console.print_json(
            {
                "protocol": PROTOCOL,
                "scale": factor,
                "rows": rows,
                "warnings": [console.printable(warning) for warning in warnings],
            }
        )
    else:
        _print_table(rows, PROTOCOL)
    for warning in warnings:
        console.warn(warning)


def _upscalers(
    models: tuple[Path, ...], scale: str | None, device: str
) -> tuple[list[tuple[str, Upscaler]], int]:
    """Name and function of each model, and the scale they share."""
    if not models:
        return [], int(scale or 4)
    from trainer.run import choose_device
    from trainer.upscale import DEFAULT_OVERLAP, DEFAULT_TILE, picture_upscaler
    from trainer.weights import load_generator

    chosen = choose_device(device)
    factor = int(scale) if scale else None
    found: list[tuple[str, Upscaler]] = []
    for path, label in zip(models, _labels(models), strict=True):
        loaded = load_generator(path, device=chosen)
        if factor not in (None, loaded.scale):
            other = f"--scale is {factor}" if scale else f"the one before x{factor}"
            raise UsageError(
                f"--model {path}: upscales x{loaded.scale}, but {other}; score each scale in a run of its own"
            )
        factor = loaded.scale
        upscaler = picture_upscaler(
            loaded, tile=DEFAULT_TILE, overlap=DEFAULT_OVERLAP, device=chosen
        )
        found.append((label, upscaler))
    return found, factor or 4


def _labels(models: tuple[Path, ...]) -> list[str]:
    """A name of its own for each row, as short as that allows."""
    for path in models:
        if models.count(path) > 1:
            raise UsageError(f"--model {path}: is given twice; name it once")
    choices = [_label_choices(path) for path in models]
    by_length = [["bicubic", *level] for level in zip(*choices, strict=True)]
    return [
        next(
            label for label, all_of in zip(own, by_length, strict=True) if all_of.count(label) == 1
        )
        for own in choices
    ]


def _label_choices(path: Path) -> tuple[str, str, str]:
    """RUN/STAGE and RUN/CHECKPOINT/STAGE for a file of a run folder, else the stem; then the path."""
    parts = path.resolve().parts
    if "checkpoints" not in parts[:-1]:
        return path.stem, path.stem, str(path)
    at = len(parts) - 1 - parts[::-1].index("checkpoints")
    run, stage = parts[at - 1], path.stem.split("-")[0]
    return f"{run}/{stage}", "/".join((run, *parts[at + 1 : -1], stage)), str(path)


def _printable(row: Row) -> Row:
    """The row with names that any terminal and JSON can hold: file names are bytes."""
    images: list[dict[str, str | float]] = [
        each | {"image": console.printable(str(each["image"]))} for each in row.per_image
    ]
    return msgspec.structs.replace(
        row,
        set=console.printable(row.set),
        model=console.printable(row.model),
        per_image=images,
    )


def _print_table(rows: list[Row], protocol: str) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("set", "model"):
        table.add_column(title, overflow="fold")  # two names that differ at their end stay two
    for title in ("images", "PSNR-Y", "SSIM-Y", "PSNR-RGB", "SSIM-RGB"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.set, row.model, str(row.images),
            f"{row.psnr_y:.2f}", f"{row.ssim_y:.4f}", f"{row.psnr_rgb:.2f}", f"{row.ssim_rgb:.4f}",
        )  # fmt: skip
    out = Console(highlight=False)
    out.print(table)
    out.print(protocol, style="dim", soft_wrap=True)
