"""`prep-shards`: makes a data set of patch pairs from photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline import printing
from shards.errors import UsageError
from shards.terminal import console

if TYPE_CHECKING:  # imported lazily, because --doctor must run where PIL is broken
    from pipeline.execution.engines import Engine
    from shards.io.remote import Location


class Percentage(click.ParamType[float]):
    """A fraction, written as `5%` or `0.05`."""

    name = "fraction"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the fraction that a text states."""
        text = str(value).strip()
        try:
            fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is not a fraction; write 5% or 0.05", param, ctx)
        if not 0 <= fraction <= 1:
            self.fail(f"{text!r} is not between 0 and 100%", param, ctx)
        return fraction


def count_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@console.command(
    "prep-shards",
    example="prep-shards --src DIV2K --out shards/\n"
    "prep-shards --src photos --out shards/ --patches-per-image 50 --val-fraction 0.1",
)
@click.option(
    "--src", "sources", multiple=True, type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Folder of photos, searched recursively, or a URL (s3://bucket/photos). The layouts of DIV2K,"
    " Flickr2K, DF2K and LSDIR are recognised (repeatable).",
)  # fmt: skip
@click.option(
    "--out", type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Folder for the shards, or a URL, to which finished shards are uploaded.",
)  # fmt: skip
@click.option(
    "--work-dir", type=console.FilePath(), metavar="DIR",
    help="Local folder for a data set that goes to a URL; needs twice its size. With --scheduler all machines"
    " must share it.  [default: the system's temporary folder]",
)  # fmt: skip
@click.option(
    "--hr-size", default=128, show_default=True, metavar="N", help="Side of an HR patch, pixels.",
)  # fmt: skip
@click.option(
    "--scale", default="4", show_default=True, type=click.Choice(["2", "3", "4", "8"]),
    help="Size of HR relative to LR.",
)  # fmt: skip
@click.option(
    "--patches-per-image", type=click.IntRange(1), metavar="N", show_default="200",
    help="Random patches per photo; fewer for small photos.",
)  # fmt: skip
@click.option(
    "--grid", type=click.IntRange(1), metavar="STRIDE",
    help="Extract a patch every STRIDE pixels instead of random ones.",
)  # fmt: skip
@click.option(
    "--kernel", type=click.Choice(["pillow", "matlab"]), default="pillow", show_default=True,
    help="Implementation of the antialiased bicubic that makes LR: pillow is fast, matlab equals"
    " imresize bit for bit.",
)  # fmt: skip
@click.option(
    "--degrade", type=click.Choice(["bicubic", "realesrgan"]), default="bicubic", show_default=True,
    help="Degradation of LR: bicubic, or random blur, noise and JPEG per patch as in Real-ESRGAN.",
)  # fmt: skip
@click.option(
    "--lr-from", type=click.Choice(["image", "patch"]), default="image", show_default=True,
    help="Downscale the whole photo before cropping, or each patch separately.",
)  # fmt: skip
@click.option(
    "--lr-dir", "lr_dirs", multiple=True, type=console.FilePath(), metavar="DIR",
    help="Use official LR images (DIV2K, or DIV2K/DIV2K_train_LR_bicubic/X4) instead of making them; matched by name"
    " and compared with the photos (repeatable).",
)  # fmt: skip
@click.option(
    "--store-larger", default=0, show_default=True, metavar="N",
    help="Store HR patches N pixels larger than --hr-size, for random aligned crops in training.",
)  # fmt: skip
@click.option(
    "--codec", type=click.Choice(["png", "webp", "raw"]), default="png", show_default=True,
    help="Lossless encoding of patches: png is read by every program, webp is a third smaller and seventy times"
    " slower to write, raw (.npy) is twice as large and needs no decoding.",
)  # fmt: skip
@click.option(
    "--keep-flat", type=Percentage(), default="5%", show_default=True,
    help="Fraction of flat patches (luma deviation below 4 grey levels) to keep.",
)  # fmt: skip
@click.option(
    "--min-detail", default=0.0, show_default=True, metavar="N",
    help="Skip patches with a luma deviation below N grey levels.",
)  # fmt: skip
@click.option(
    "--max-blockiness", default=0.0, show_default=True, metavar="R",
    help="Reject photos with visible JPEG blocks: luma steps at block edges above R times the others (1: clean,"
    " 1.3: quality 75, 1.6: quality 50). 0 accepts all.",
)  # fmt: skip
@click.option(
    "--pre-scale", type=click.Choice(["1", "0.5", "0.25"]), default="1", show_default=True,
    help="Downscale photos with visible JPEG blocks (blockiness above 1.3) by this factor first.",
)  # fmt: skip
@click.option(
    "--icc", type=click.Choice(["convert", "ignore"]), default="convert", show_default=True,
    help="Convert photos with a colour profile to sRGB, or ignore the profile.",
)  # fmt: skip
@click.option(
    "--alpha", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True,
    help="Refuse photos with transparent pixels, or drop their alpha channel.",
)  # fmt: skip
@click.option(
    "--max-megapixels", default=200.0, show_default=True, metavar="N", help="Reject larger photos.",
)  # fmt: skip
@click.option(
    "--seed", default=0, show_default=True, metavar="N",
    help="Random seed for patch positions, order and the train/val split.",
)  # fmt: skip
@click.option(
    "--val-fraction", type=Percentage(), default="5%", show_default=True,
    help="Fraction of the photos for validation (at least one photo, unless 0), if the layout has no validation"
    " folder.",
)  # fmt: skip
@click.option(
    "--val-list", metavar="FILE|GLOB",
    help="Validation photos: a file with one name per line, or a pattern such as 'kodim*'. A published validation"
    " folder is used as well.",
)  # fmt: skip
@click.option(
    "--similar", type=click.Choice(["drop", "keep"]), default="drop", show_default=True,
    help="Near-duplicates (resized, recompressed, mirrored): use only the largest, or keep all in one split.",
)  # fmt: skip
@click.option(
    "--exclude-like", multiple=True, type=console.FilePath(), metavar="DIR",
    help="Reject photos that resemble an image of this test set, including scaled, recompressed and mirrored copies;"
    " rotated copies and crops of more than a few percent are not detected (repeatable).",
)  # fmt: skip
@click.option(
    "--samples-per-shard", default=4096, show_default=True, type=click.IntRange(1), metavar="N",
    help="Patch pairs per tar; the default is about 120 MB of 128x128 PNG. Each process holds one tar in memory.",
)  # fmt: skip
@click.option(
    "--max-rejects", type=Percentage(), default="5%", show_default=True,
    help="Fail if a larger fraction of the photos is rejected.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0, 4096), default=None, metavar="N", show_default="cores",
    help="Number of processes; it does not change the shards. 0 works in the main process.",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["local", "dask", "ray"]), default="local", show_default=True,
    help="Run on processes of this machine, or on a cluster that shares the folders.",
)  # fmt: skip
@click.option(
    "--scheduler", default="", metavar="ADDR",
    help="Address of the cluster: tcp://… or scheduler.json (Dask), ray://….  [default: a cluster on this machine]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the existing data set.")
@click.option(
    "--repair", is_flag=True, help="Read every byte of the existing data set and make damaged shards again.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print a forecast of size and time; write nothing.")
@click.option(
    "--doctor", is_flag=True,
    help="Check this installation (PIL, OpenCV, the C kernel for PNG) and print commands that repair it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def main(
    sources: tuple[Location, ...], out: Location | None, work_dir: Path | None,
    patches_per_image: int | None, grid: int | None,
    lr_dirs: tuple[Path, ...], val_list: str | None, exclude_like: tuple[Path, ...], max_rejects: float,
    workers: int | None, engine: Engine, scheduler: str, *,
    overwrite: bool, repair: bool, dry_run: bool, doctor: bool, as_json: bool, **settings: object,
) -> None:  # fmt: skip
    """Extract LR/HR patch pairs from photos and write them as tar shards.

    LR is the antialiased bicubic of the whole photo. The same photos and options give the same bytes,
    for any number of workers and after any number of interruptions. To resume a stopped or killed run, run the same
    command again.
    """
    if doctor:
        printing.print_checks(as_json=as_json)
        return
    if not sources:
        raise UsageError("--src: is missing; name the folder of photos, for example --src DIV2K")
    if out is None:
        raise UsageError(
            "--out: is missing; name the folder for the shards, for example --out shards/"
        )
    if val_list == "":
        raise UsageError("--val-list: the path is empty; check that its variable is set")
    if repair and overwrite:
        raise UsageError("--repair: cannot be combined with --overwrite; choose one")
    if patches_per_image and grid:
        raise UsageError("--grid: cannot be combined with --patches-per-image; choose one")
    url = out if isinstance(out, str) else ""
    if work_dir and not url:
        raise UsageError("--work-dir: applies only if --out is a URL; leave it out")
    if scheduler and engine == "local":
        raise UsageError("--scheduler: needs a cluster engine; add --engine dask or ray")
    if scheduler and url and not work_dir:
        raise UsageError(
            "--work-dir: is missing; name a folder that all machines of the cluster share"
        )
    from pipeline.execution import pool

    workers = count_cores() if workers is None else workers
    with pool.limit_to_one_core():
        if workers and engine == "local" and not dry_run:
            pool.start_fork_server()
        from pipeline.job import Job, RunTerminal
        from pipeline.options import Options
        from pipeline.photos.walk import sanitise_name
        from pipeline.stages.prepare import dry_run_scan, prepare
        from pipeline.stages.upload import local_folder
        from shards.format.unfilter import missing_kernel_reason
        from shards.terminal.progress import progress

        if not dry_run:
            missing_kernel_reason()  # compiles the kernel here, before every worker would

    settings["patches_per_image"] = 0 if grid else patches_per_image or 200
    settings["grid"] = grid or 0
    settings["val_list"] = tuple(map(sanitise_name, _read_names(val_list))) if val_list else ()
    job = Job(
        sources=sources,
        out=local_folder(out, work_dir) if isinstance(out, str) else out,
        url=url,
        options=msgspec.convert(settings, Options, strict=False),
        workers=workers,
        engine=engine,
        scheduler=scheduler,
        exclude_like=exclude_like,
        lr_dirs=lr_dirs,
        max_rejects=max_rejects,
        overwrite=overwrite,
        repair=repair,
    )
    if dry_run:
        job, scan, val_names = dry_run_scan(job)
        printing.print_forecast(job, scan, val_names, as_json=as_json)
        return
    with console.stop_requests() as stop_requested:
        report = prepare(
            job, RunTerminal(say=console.say, progress=progress, stop_requested=stop_requested)
        )
    report = msgspec.structs.replace(report, out=console.printable(report.out))
    if as_json:
        console.print_json(report)
    else:
        printing.print_report(report)


def _read_names(val_list: str) -> tuple[str, ...]:
    """Return a pattern itself, or the names in a file."""
    path = Path(val_list)
    if not path.exists() and any(sign in val_list for sign in "*?["):
        return (val_list,)
    try:
        lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(
            f"--val-list {path}: cannot be read ({error.strerror}); check the path"
        ) from None
    names = tuple(sorted({line.strip() for line in lines if line.strip()}))
    if not names:
        raise UsageError(f"--val-list {path}: is empty; write one photo name per line")
    return names
