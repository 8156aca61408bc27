"""`eval-sr`: models and baselines on test sets, scored by one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shards.errors import UsageError
from shards.io import atomic
from shards.terminal import console
from shards.terminal.progress import progress

if TYPE_CHECKING:
    import torch

    from shards.images.resize import Enlargement
    from trainer.evaluation.evaluate import Row, Upscaler
    from trainer.evaluation.test_sets import ImageSet
    from trainer.perceptual.metric import PerceptualMetric

BASELINES: tuple[Enlargement, ...] = ("bicubic", "lanczos", "nearest")


@console.command(
    "eval-sr",
    example="eval-sr --hr Set5 --hr Set14 --model srcnn.safetensors --model psnr.safetensors --model gan.safetensors\n"
    "eval-sr --hr photos/ --model gan.safetensors --lpips alexnet-owt-7be5be79.pth --strips strips/\n"
    "eval-sr --shards shards/ --json",
)
@click.option(
    "--hr", "hrs", multiple=True, type=console.FilePath(),
    help="Folder of HR pictures, or of a set that has them in HR/ (repeatable).",
)  # fmt: skip
@click.option(
    "--lr", "lrs", multiple=True, type=console.FilePath(),
    help="Folder of their LR pictures, one for each --hr.  [default: the set's LRx4/ beside HR/, or else"
    " antialiased bicubic of HR]",
)  # fmt: skip
@click.option("--shards", type=console.FilePath(), help="Score the held-out patches there.")
@click.option(
    "--model", "models", multiple=True, type=console.FilePath(),
    help="Weights, .safetensors (repeatable).",
)  # fmt: skip
@click.option(
    "--name", "names", multiple=True, metavar="TEXT",
    help="What a --model is called in the table, one for each.  [default: preset/stage as the file says]",
)  # fmt: skip
@click.option(
    "--blend", "blends", multiple=True, type=click.FloatRange(0, 1), metavar="F",
    help="Of two --model, add a row for the weights F of the way from the first to the second (repeatable).",
)  # fmt: skip
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Choice(BASELINES),
    metavar="KERNEL", help="bicubic (always in the table), lanczos or nearest (repeatable).",
)  # fmt: skip
@click.option(
    "--scale", type=click.Choice(["2", "3", "4", "8"]), help="[default: the model's, or 4]"
)
@click.option(
    "--lpips", type=console.FilePath(), metavar="FILE", envvar="USRGAN_LPIPS",
    help="Add LPIPS; FILE is torchvision's AlexNet (or VGG-16).  [default: $USRGAN_LPIPS]",
)  # fmt: skip
@click.option(
    "--dists", type=console.FilePath(), metavar="FILE", envvar="USRGAN_DISTS",
    help="Add DISTS; FILE is torchvision's VGG-16.  [default: $USRGAN_DISTS]",
)  # fmt: skip
@click.option(
    "--spectrum", is_flag=True,
    help="Add how much detail there is beside HR's, in dB: of gradients, and by frequency.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "json"]), default="md", show_default=True,
    help="Of the table on stdout.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--per-image", is_flag=True, help="Every picture's values, too (JSON always has them)."
)
@click.option(
    "--strips", type=console.FilePath(), metavar="DIR",
    help="Write each picture there as PNG: LR, every row of the table, HR, and error maps.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)  # fmt: skip
def eval_main(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, models: tuple[Path, ...],
    names: tuple[str, ...], blends: tuple[float, ...], baselines: tuple[Enlargement, ...],
    scale: str | None, lpips: Path | None, dists: Path | None, form: str, strips: Path | None,
    device: str, *, spectrum: bool, as_json: bool, per_image: bool,
) -> None:  # fmt: skip
    """Score models and bicubic on whole test sets by PSNR and SSIM, on luma and on RGB.

    The protocol is that of the field's tables and is printed with the numbers; a bicubic row that
    is not the published one is a warning.
    """
    from trainer.device import choose_device
    from trainer.evaluation import tables
    from trainer.evaluation.evaluate import baseline, evaluate, missed_anchors, protocol

    _check_options(hrs, lrs, shards, models, names, strips)
    if blends and len(models) != 2:
        raise UsageError(
            f"--blend: lies between two --model, and {len(models)} are given; name two stages of one network"
        )
    chosen = choose_device(device)
    judges = _judges(lpips, dists, chosen)
    upscalers, factor = _upscalers(models, names, scale, chosen)
    upscalers += _blends(models, blends, chosen)
    kernels: dict[Enlargement, None] = dict.fromkeys(("bicubic", *baselines))
    entries = [*((kernel, baseline(kernel, scale=factor)) for kernel in kernels), *upscalers]
    sets = _sets(hrs, lrs, shards, scale=factor, judges=judges)
    twice = next((one.name for one in sets if [two.name for two in sets].count(one.name) > 1), None)
    if strips and twice:
        raise UsageError(
            f"--strips {strips}: two sets are called {twice}; write their strips in two runs"
        )
    by_set: list[list[Row]] = []
    for found in sets:
        with progress(found.name, total=found.images, unit="images") as advance:
            scored = evaluate(
                found, entries, scale=factor, judges=judges, detail=spectrum, strips=strips,
                advance=advance,
            )  # fmt: skip
        by_set.append([_printable(row) for row in scored])
    rows = [row for own in by_set for row in own]
    told = protocol(judges, detail=spectrum)
    shown = [_printable_set(found) for found in sets]
    warnings = [judge.warning for judge in judges if judge.warning]
    warnings += missed_anchors(rows, scale=factor)
    if as_json or form == "json":
        console.print_json(_result(shown, rows, warnings, scale=factor, protocol=told))
    elif form == "csv":
        click.echo(tables.csv_text(rows, protocol=told, per_image=per_image))
    else:
        click.echo(tables.markdown(shown, by_set, scale=factor, protocol=told, per_image=per_image))
    for warning in warnings:
        console.warn(warning)


def _check_options(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, models: tuple[Path, ...],
    names: tuple[str, ...], strips: Path | None,
) -> None:  # fmt: skip
    """What options say against each other."""
    if not hrs and shards is None:
        raise UsageError("--hr: name a folder of HR pictures, or --shards a data set")
    if lrs and len(lrs) != len(hrs):
        raise UsageError(f"--lr: {len(lrs)} given for {len(hrs)} --hr; give one for each or none")
    if names and len(names) != len(models):
        raise UsageError(
            f"--name: {len(names)} given for {len(models)} --model; give one for each or none"
        )
    for name in names:
        if names.count(name) > 1 or name in BASELINES or not name.strip():
            raise UsageError(f"--name {name}: each row needs a name of its own; choose another")
    for path in models:
        if models.count(path) > 1:
            raise UsageError(f"--model {path}: is given twice; name it once")
    if strips:
        atomic.check_folder(strips, option="--strips")
        for folder in (*hrs, *lrs):
            if strips.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"--strips {strips}: lies in {folder}, whose pictures are scored; name another folder"
                )


def _judges(lpips: Path | None, dists: Path | None, device: torch.device) -> list[PerceptualMetric]:
    from trainer.perceptual.dists import build_dists
    from trainer.perceptual.lpips import build_lpips

    judges = [build_lpips(lpips, device=device)] if lpips else []
    return [*judges, build_dists(dists, device=device)] if dists else judges


def _sets(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, *, scale: int,
    judges: list[PerceptualMetric],
) -> list[ImageSet]:  # fmt: skip
    from trainer.evaluation.metrics import WINDOW
    from trainer.evaluation.test_sets import open_folder_set, open_shards_set

    smallest = max(WINDOW + 2 * scale, *(judge.smallest for judge in judges), 0)
    sets = [
        open_folder_set(hr, lrs[number] if lrs else None, scale=scale, smallest=smallest)
        for number, hr in enumerate(hrs)
    ]
    return [*sets, open_shards_set(shards, scale=scale, smallest=smallest)] if shards else sets


def _upscalers(
    models: tuple[Path, ...], names: tuple[str, ...], scale: str | None, device: torch.device
) -> tuple[list[tuple[str, Upscaler]], int]:
    """Name and function of each model, and the scale they share."""
    if not models:
        return [], int(scale or 4)
    from trainer.evaluation.row_labels import make_row_labels
    from trainer.upscaling.upscale import DEFAULT_OVERLAP, DEFAULT_TILE, picture_upscaler
    from trainer.weights.generators import load_generator

    factor = int(scale) if scale else None
    found: list[Upscaler] = []
    told: list[dict[str, str]] = []
    for path in models:
        loaded = load_generator(path, device=device)
        if factor not in (None, loaded.scale):
            other = f"--scale is {factor}" if scale else f"the one before x{factor}"
            raise UsageError(
                f"--model {path}: upscales x{loaded.scale}, but {other}; score each scale in a run of its own"
            )
        factor = loaded.scale
        found.append(
            picture_upscaler(loaded, tile=DEFAULT_TILE, overlap=DEFAULT_OVERLAP, device=device)
        )
        told.append(loaded.metadata)
    return list(
        zip(names or make_row_labels(models, told, taken=BASELINES), found, strict=True)
    ), factor or 4


def _blends(
    models: tuple[Path, ...], blends: tuple[float, ...], device: torch.device
) -> list[tuple[str, Upscaler]]:
    """A row for each way between the two models."""
    from trainer.upscaling.upscale import DEFAULT_OVERLAP, DEFAULT_TILE, picture_upscaler
    from trainer.weights.generators import load_blend

    rows = []
    for alpha in dict.fromkeys(blends):
        loaded = load_blend(*models, alpha=alpha, device=device)
        upscaler = picture_upscaler(
            loaded, tile=DEFAULT_TILE, overlap=DEFAULT_OVERLAP, device=device
        )
        rows.append((f"blend {alpha:g}", upscaler))
    return rows


def _result(
    sets: list[ImageSet], rows: list[Row], warnings: list[str], *, scale: int, protocol: str
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "protocol": protocol,
        "scale": scale,
        "sets": [
            {
                "set": found.name,
                "images": found.images,
                "lr": found.lr_from,
                "notes": found.notes,
            }
            for found in sets
        ],
        "rows": rows,
        "warnings": [console.printable(warning) for warning in warnings],
    }


def _printable_set(found: ImageSet) -> ImageSet:
    """The set with names that any terminal and JSON can hold: file names are bytes."""
    return found._replace(
        name=console.printable(found.name),
        lr_from=console.printable(found.lr_from),
        notes=tuple(console.printable(note) for note in found.notes),
    )


def _printable(row: Row) -> Row:
    """The same of a row."""
    images: list[dict[str, str | float]] = [
        each | {"image": console.printable(str(each["image"]))} for each in row.per_image
    ]
    return msgspec.structs.replace(
        row,
        set=console.printable(row.set),
        model=console.printable(row.model),
        per_image=images,
    )
