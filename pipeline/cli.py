"""`prep-shards`: photos to patch pairs in tar shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline import printing
from shards.errors import UsageError
from shards.terminal import console

if TYPE_CHECKING:  # the rest is imported when it is needed: --doctor has to run where PIL is broken
    from pipeline.execution.engines import Engine
    from shards.io.remote import Location


class Percentage(click.ParamType[float]):
    """`5%` or `0.05`."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Turn a percentage or a fraction into a fraction."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is no share; write 5% or 0.05", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not between 0 and 100%", param, ctx)
        return share


def count_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@console.command(
    "prep-shards",
    example="prep-shards --src DIV2K --out shards/\n"
    "prep-shards --src photos --out shards/ --patches-per-image 50 --val-fraction 0.1",
)
@click.option(
    "--src", "sources", multiple=True, type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Folder of photos with its subfolders, or a URL (s3://bucket/photos); DIV2K, Flickr2K, DF2K and"
    " LSDIR are recognised by their layout (repeatable).",
)  # fmt: skip
@click.option(
    "--out", type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Folder or URL for the shards; a URL receives each shard once it is complete.",
)  # fmt: skip
@click.option(
    "--work-dir", type=console.FilePath(), metavar="DIR",
    help="Scratch folder of a data set that goes to a URL, twice its size; with --scheduler all machines"
    " must see it.  [default: the system's]",
)  # fmt: skip
@click.option(
    "--hr-size", default=128, show_default=True, metavar="N", help="Side of an HR patch, pixels.",
)  # fmt: skip
@click.option(
    "--scale", default="4", show_default=True, type=click.Choice(["2", "3", "4", "8"]),
    help="HR size over LR size.",
)  # fmt: skip
@click.option(
    "--patches-per-image", type=click.IntRange(1), metavar="N", show_default="200",
    help="Random patches per photo; a small photo gives fewer.",
)  # fmt: skip
@click.option(
    "--grid", type=click.IntRange(1), metavar="STRIDE", help="Instead of random patches, one every STRIDE pixels.",
)  # fmt: skip
@click.option(
    "--kernel", type=click.Choice(["pillow", "matlab"]), default="pillow", show_default=True,
    help="Antialiased bicubic that makes LR: pillow is fast, matlab equals imresize bit for bit.",
)  # fmt: skip
@click.option(
    "--degrade", type=click.Choice(["bicubic", "realesrgan"]), default="bicubic", show_default=True,
    help="Plain bicubic LR, or LR blurred, noisy and compressed as in Real-ESRGAN, with random parameters per patch.",
)  # fmt: skip
@click.option(
    "--lr-from", type=click.Choice(["image", "patch"]), default="image", show_default=True,
    help="Downscale the whole photo before patches are cut, or each patch on its own.",
)  # fmt: skip
@click.option(
    "--lr-dir", "lr_dirs", multiple=True, type=console.FilePath(), metavar="DIR",
    help="Use these LR images (DIV2K, or DIV2K/DIV2K_train_LR_bicubic/X4) instead of making them; they are paired by"
    " name and checked against the photos (repeatable).",
)  # fmt: skip
@click.option(
    "--store-larger", default=0, show_default=True, metavar="N",
    help="Store HR patches N pixels larger than --hr-size; training takes aligned random crops.",
)  # fmt: skip
@click.option(
    "--codec", type=click.Choice(["png", "webp", "raw"]), default="png", show_default=True,
    help="Lossless codec: every reader knows png, webp is a third smaller and seventy times slower to"
    " write, raw (.npy) is twice as large and needs no decoding.",
)  # fmt: skip
@click.option(
    "--keep-flat", type=Percentage(), default="5%", show_default=True,
    help="Share of flat patches to keep; their luma deviates by less than 4 grey levels.",
)  # fmt: skip
@click.option(
    "--min-detail", default=0.0, show_default=True, metavar="N",
    help="Skip patches whose luma deviates by less than N grey levels.",
)  # fmt: skip
@click.option(
    "--max-blockiness", default=0.0, show_default=True, metavar="R",
    help="Skip photos with visible JPEG blocks: luma steps at block edges exceed R times the others (1: clean,"
    " 1.3: quality 75, 1.6: quality 50). 0 accepts all.",
)  # fmt: skip
@click.option(
    "--pre-scale", type=click.Choice(["1", "0.5", "0.25"]), default="1", show_default=True,
    help="Downscale photos with visible JPEG blocks (above 1.3) by this factor first.",
)  # fmt: skip
@click.option(
    "--icc", type=click.Choice(["convert", "ignore"]), default="convert", show_default=True,
    help="Convert photos with a colour profile to sRGB, or use their values unchanged.",
)  # fmt: skip
@click.option(
    "--alpha", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True,
    help="Refuse photos with transparent pixels, or drop their alpha channel.",
)  # fmt: skip
@click.option(
    "--max-megapixels", default=200.0, show_default=True, metavar="N", help="Refuse larger photos.",
)  # fmt: skip
@click.option(
    "--seed", default=0, show_default=True, metavar="N",
    help="Random seed for patch positions, order and the train/val split.",
)  # fmt: skip
@click.option(
    "--val-fraction", type=Percentage(), default="5%", show_default=True,
    help="Share of photos held out for validation (at least one, unless 0), if the layout has no validation folder.",
)  # fmt: skip
@click.option(
    "--val-list", metavar="FILE|GLOB",
    help="Photos held out for validation: a file with one name per line, or a pattern such as 'kodim*'; added to"
    " those of a published validation folder.",
)  # fmt: skip
@click.option(
    "--similar", type=click.Choice(["drop", "keep"]), default="drop", show_default=True,
    help="Near-duplicates (resized, recompressed, mirrored): keep the largest, or all.",
)  # fmt: skip
@click.option(
    "--exclude-like", multiple=True, type=console.FilePath(), metavar="DIR",
    help="Skip photos that resemble an image of this test set, also resized, recompressed or mirrored, but not turned"
    " or cropped by more than a few percent (repeatable).",
)  # fmt: skip
@click.option(
    "--samples-per-shard", default=4096, show_default=True, type=click.IntRange(1), metavar="N",
    help="Patch pairs per tar, about 120 MB of 128x128 PNG; each worker holds one tar in memory.",
)  # fmt: skip
@click.option(
    "--max-rejects", type=Percentage(), default="5%", show_default=True,
    help="Fail if more than this share of the photos is refused.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0, 4096), default=None, metavar="N", show_default="cores",
    help="Worker processes; the shards are the same for any number. 0 works in this process.",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["local", "dask", "ray"]), default="local", show_default=True,
    help="Where tasks run: processes of this machine, or a cluster that sees the same folders.",
)  # fmt: skip
@click.option(
    "--scheduler", default="", metavar="ADDR",
    help="Address of the cluster: tcp://…, scheduler.json (Dask), ray://….  [default: a cluster on this machine]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing data set.")
@click.option(
    "--repair", is_flag=True, help="Check every byte of an existing data set and rebuild damaged shards.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print a forecast; write nothing.")
@click.option(
    "--doctor", is_flag=True,
    help="Check this installation: PIL's flavour and speed, clashing packages, the PNG kernel; print repair commands.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def main(
    sources: tuple[Location, ...], out: Location | None, work_dir: Path | None,
    patches_per_image: int | None, grid: int | None,
    lr_dirs: tuple[Path, ...], val_list: str | None, exclude_like: tuple[Path, ...], max_rejects: float,
    workers: int | None, engine: Engine, scheduler: str, *,
    overwrite: bool, repair: bool, dry_run: bool, doctor: bool, as_json: bool, **settings: object,
) -> None:  # fmt: skip
    """Cut photos into LR/HR patch pairs and write them as tar shards.

    LR is antialiased bicubic of the whole photo. The same photos and options give the same bytes,
    for any number of workers and after any number of interruptions. To resume a stopped or killed run, run the same
    command again.
    """
    if doctor:
        printing.print_checks(as_json=as_json)
        return
    if not sources:
        raise UsageError("--src: name the folder of photos, for example --src DIV2K")
    if out is None:
        raise UsageError("--out: name the folder of the shards, for example --out shards/")
    if val_list == "":
        raise UsageError("--val-list: the path is empty (a variable that is not set?)")
    if repair and overwrite:
        raise UsageError("--repair: cannot be had together with --overwrite; choose one")
    if patches_per_image and grid:
        raise UsageError("--grid: cannot be had together with --patches-per-image; choose one")
    url = out if isinstance(out, str) else ""
    if work_dir and not url:
        raise UsageError("--work-dir: is for a --out that is a URL; a folder is its own")
    if scheduler and engine == "local":
        raise UsageError("--scheduler: is the address of a cluster; add --engine dask or ray")
    if scheduler and url and not work_dir:
        raise UsageError(
            "--work-dir: name a folder that all machines of the cluster see; the default is this machine's own"
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
            missing_kernel_reason()  # is compiled at first: here, before every worker would

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
        job, found, val_names = dry_run_scan(job)
        printing.print_forecast(job, found, val_names, as_json=as_json)
        return
    with console.stop_requests() as stopping:
        report = prepare(job, RunTerminal(say=console.say, progress=progress, stopping=stopping))
    report = msgspec.structs.replace(report, out=console.printable(report.out))
    if as_json:
        console.print_json(report)
    else:
        printing.print_report(report)


def _read_names(given: str) -> tuple[str, ...]:
    path = Path(given)
    if not path.exists() and any(sign in given for sign in "*?["):
        return (given,)
    try:
        lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(f"--val-list {path}: cannot be read ({error.strerror})") from None
    names = tuple(sorted({line.strip() for line in lines if line.strip()}))
    if not names:
        raise UsageError(f"--val-list {path}: is empty; write the names of photos, one a line")
    return names
