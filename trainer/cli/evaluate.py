"""`eval-sr`: scores of models and baselines on test sets."""

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
    help="Folder of HR images, or folder of a test set with its HR images in HR/ (repeatable).",
)  # fmt: skip
@click.option(
    "--lr", "lrs", multiple=True, type=console.FilePath(),
    help="Folder of LR images, one for each --hr.  [default: LRx4/ of the test set if it exists,"
    " otherwise antialiased bicubic of HR]",
)  # fmt: skip
@click.option("--shards", type=console.FilePath(), help="Shard folder; score its held-out patches.")
@click.option(
    "--model", "models", multiple=True, type=console.FilePath(),
    help="Weights file, .safetensors (repeatable).",
)  # fmt: skip
@click.option(
    "--name", "names", multiple=True, metavar="TEXT",
    help="Row label of a --model in the table, one for each.  [default: preset/stage from the file]",
)  # fmt: skip
@click.option(
    "--blend", "blends", multiple=True, type=click.FloatRange(0, 1), metavar="F",
    help="With two --model, add a row of their interpolated weights; 0: the first, 1: the second (repeatable).",
)  # fmt: skip
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Choice(BASELINES),
    metavar="KERNEL",
    help="Add a row for an interpolation: bicubic (always included), lanczos or nearest (repeatable).",
)  # fmt: skip
@click.option(
    "--scale",
    type=click.Choice(["2", "3", "4", "8"]),
    help="Scale of the test sets.  [default: that of the models, or 4]",
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
    help="Add the detail relative to HR, in dB: power of gradients and of frequency bands.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "json"]), default="md", show_default=True,
    help="Format of the table on stdout.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
@click.option(
    "--per-image", is_flag=True, help="Add the scores of each image (JSON always has them)."
)
@click.option(
    "--strips", type=console.FilePath(), metavar="DIR",
    help="Folder for a comparison sheet of each image (PNG): LR, each table row, HR, and error maps.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Device; auto uses a GPU if available.",
)  # fmt: skip
def eval_main(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, models: tuple[Path, ...],
    names: tuple[str, ...], blends: tuple[float, ...], baselines: tuple[Enlargement, ...],
    scale: str | None, lpips: Path | None, dists: Path | None, form: str, strips: Path | None,
    device: str, *, spectrum: bool, as_json: bool, per_image: bool,
) -> None:  # fmt: skip
    """Score models and bicubic on test sets: PSNR and SSIM on luma and on RGB.

    The protocol is that of published tables and is printed with the scores. A warning names each standard
    set whose bicubic row differs from the published scores.
    """
    from trainer.device import choose_device
    from trainer.evaluation import tables
    from trainer.evaluation.evaluate import (
        build_baseline,
        describe_protocol,
        list_baseline_mismatches,
        score_models,
    )

    _check_options(hrs, lrs, shards, models, names, strips)
    if blends and len(models) != 2:
        raise UsageError(
            f"--blend: needs two --model, not {len(models)}; use two stages of one network"
        )
    chosen = choose_device(device)
    metrics = _build_metrics(lpips, dists, chosen)
    upscalers, factor = _load_upscalers(models, names, scale, chosen)
    upscalers += _load_blends(models, blends, chosen)
    kernels: dict[Enlargement, None] = dict.fromkeys(("bicubic", *baselines))
    entries = [*((kernel, build_baseline(kernel, scale=factor)) for kernel in kernels), *upscalers]
    sets = _open_sets(hrs, lrs, shards, scale=factor, metrics=metrics)
    _check_set_names(sets, strips)
    by_set: list[list[Row]] = []
    for test_set in sets:
        with progress(test_set.name, total=test_set.images, unit="images") as advance:
            scored = score_models(
                test_set, entries, scale=factor, metrics=metrics, detail=spectrum, sheets=strips,
                advance=advance,
            )  # fmt: skip
        by_set.append([_escape_row(row) for row in scored])
    rows = [row for own in by_set for row in own]
    protocol = describe_protocol(metrics, detail=spectrum)
    sets = [_escape_set(test_set) for test_set in sets]
    warnings = [metric.warning for metric in metrics if metric.warning]
    warnings += list_baseline_mismatches(rows, scale=factor)
    if as_json or form == "json":
        console.print_json(_build_json(sets, rows, warnings, scale=factor, protocol=protocol))
    elif form == "csv":
        click.echo(tables.format_csv(rows, protocol=protocol, per_image=per_image))
    else:
        text = tables.format_markdown(
            sets, by_set, scale=factor, protocol=protocol, per_image=per_image
        )
        click.echo(text)
    for warning in warnings:
        console.warn(warning)


def _check_options(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, models: tuple[Path, ...],
    names: tuple[str, ...], strips: Path | None,
) -> None:  # fmt: skip
    """Refuse options that contradict each other."""
    if not hrs and shards is None:
        raise UsageError(
            "--hr: test set is missing; name a folder of HR images, or a data set with --shards"
        )
    if lrs and len(lrs) != len(hrs):
        raise UsageError(f"--lr: {len(lrs)} given for {len(hrs)} --hr; give one for each or none")
    if names and len(names) != len(models):
        raise UsageError(
            f"--name: {len(names)} given for {len(models)} --model; give one for each or none"
        )
    for name in names:
        if names.count(name) > 1 or name in BASELINES or not name.strip():
            raise UsageError(
                f"--name {name}: row labels must be unique and not blank; choose another"
            )
    for path in models:
        if models.count(path) > 1:
            raise UsageError(f"--model {path}: is given twice; give it once")
    if strips:
        atomic.check_folder(strips, option="--strips")
        for folder in (*hrs, *lrs):
            if strips.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"--strips {strips}: is inside {folder}, whose images are scored; name another folder"
                )


def _check_set_names(sets: list[ImageSet], strips: Path | None) -> None:
    """Refuse comparison sheets of two sets with one name: they would replace each other."""
    names = [test_set.name for test_set in sets]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if strips and repeated:
        raise UsageError(
            f"--strips {strips}: two test sets are named {repeated}; score them in two runs"
        )


def _build_metrics(
    lpips: Path | None, dists: Path | None, device: torch.device
) -> list[PerceptualMetric]:
    from trainer.perceptual.dists import build_dists
    from trainer.perceptual.lpips import build_lpips

    metrics = [build_lpips(lpips, device=device)] if lpips else []
    return [*metrics, build_dists(dists, device=device)] if dists else metrics


def _open_sets(
    hrs: tuple[Path, ...], lrs: tuple[Path, ...], shards: Path | None, *, scale: int,
    metrics: list[PerceptualMetric],
) -> list[ImageSet]:  # fmt: skip
    from trainer.evaluation.metrics import WINDOW
    from trainer.evaluation.test_sets import open_folder_set, open_shards_set

    smallest = max(WINDOW + 2 * scale, *(metric.smallest for metric in metrics), 0)
    sets = [
        open_folder_set(hr, lrs[number] if lrs else None, scale=scale, smallest=smallest)
        for number, hr in enumerate(hrs)
    ]
    return [*sets, open_shards_set(shards, scale=scale, smallest=smallest)] if shards else sets


def _load_upscalers(
    models: tuple[Path, ...], names: tuple[str, ...], scale: str | None, device: torch.device
) -> tuple[list[tuple[str, Upscaler]], int]:
    """Return label and upscaler of each model, and their common scale."""
    if not models:
        return [], int(scale or 4)
    from trainer.evaluation.row_labels import make_row_labels
    from trainer.upscaling.upscale import build_upscaler
    from trainer.weights.generators import load_generator

    factor = int(scale) if scale else None
    upscalers: list[Upscaler] = []
    metadata: list[dict[str, str]] = []
    for path in models:
        loaded = load_generator(path, device=device)
        if factor not in (None, loaded.scale):
            other = f"--scale is {factor}" if scale else f"the previous model x{factor}"
            raise UsageError(
                f"--model {path}: upscales x{loaded.scale}, but {other}; score each scale in its own run"
            )
        factor = loaded.scale
        upscalers.append(build_upscaler(loaded, device=device))
        metadata.append(loaded.metadata)
    labels = names or make_row_labels(models, metadata, taken=BASELINES)
    return list(zip(labels, upscalers, strict=True)), factor or 4


def _load_blends(
    models: tuple[Path, ...], blends: tuple[float, ...], device: torch.device
) -> list[tuple[str, Upscaler]]:
    """Return label and upscaler of each blend of the two models."""
    from trainer.upscaling.upscale import build_upscaler
    from trainer.weights.generators import load_blend

    loaded = {alpha: load_blend(*models, alpha=alpha, device=device) for alpha in blends}
    return [
        (f"blend {alpha:g}", build_upscaler(blend, device=device))
        for alpha, blend in loaded.items()
    ]


def _build_json(
    sets: list[ImageSet], rows: list[Row], warnings: list[str], *, scale: int, protocol: str
) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        "protocol": protocol,
        "scale": scale,
        "sets": [
            {
                "set": test_set.name,
                "images": test_set.images,
                "lr": test_set.lr_source,
                "notes": test_set.notes,
            }
            for test_set in sets
        ],
        "rows": rows,
        "warnings": [console.printable(warning) for warning in warnings],
    }


def _escape_set(test_set: ImageSet) -> ImageSet:
    """Return the set with escaped names, because file names can be bytes that are not UTF-8."""
    return test_set._replace(
        name=console.printable(test_set.name),
        lr_source=console.printable(test_set.lr_source),
        notes=tuple(console.printable(note) for note in test_set.notes),
    )


def _escape_row(row: Row) -> Row:
    """Return the row with escaped names of set, model and images."""
    images: list[dict[str, str | float]] = [
        scores | {"image": console.printable(str(scores["image"]))} for scores in row.per_image
    ]
    return msgspec.structs.replace(
        row,
        set=console.printable(row.set),
        model=console.printable(row.model),
        per_image=images,
    )
