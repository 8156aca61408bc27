"""`upscale-sr`: upscaling of image files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from shards.errors import UsageError, UsrganError
from shards.io import atomic
from shards.terminal import console
from shards.terminal.progress import progress

if TYPE_CHECKING:
    from trainer.upscaling.upscale import Result


@console.command(
    "upscale-sr",
    example="upscale-sr photo.jpg -o photo-4x.png --model runs/usrgan/checkpoints/final/gan.safetensors\n"
    "upscale-sr photos -r -o upscaled --model gan.safetensors",
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--output", required=True, type=console.FilePath(),
    help="Output folder, or a .png, .jpg or .webp file for a single image.",
)  # fmt: skip
@click.option(
    "-r",
    "--recursive",
    is_flag=True,
    help="Search subfolders, except hidden ones; the output mirrors them.",
)
@click.option("--model", type=console.FilePath(), help="Weights file, .safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace existing output files.")
@click.option(
    "--tile", type=click.IntRange(16), default=256, show_default=True, metavar="N",
    help="Side of a tile, in input pixels; smaller tiles need less memory.",
)  # fmt: skip
@click.option(
    "--overlap", type=click.IntRange(0), show_default="32, or a quarter of a smaller tile", metavar="N",
    help="Overlap of neighbouring tiles, in input pixels, at most a quarter of a tile.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Device; auto uses a GPU if available.",
)  # fmt: skip
@click.option(
    "--report", type=console.FilePath(), metavar="FILE", help="Write the results as JSON."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
def upscale_main(
    inputs: tuple[str, ...], output: Path, model: Path | None, tile: int, overlap: int | None, device: str,
    report: Path | None, *, recursive: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upscale images: files, folders and glob patterns.

    Existing output files are skipped: the same command resumes an interrupted run. An image that cannot be
    upscaled does not end the run; a warning names it, and the exit code is 1.

    Grey images stay grey, the Exif orientation is applied and the colour profile is kept; Exif is not.
    Images with 16 bits per channel or with transparent pixels are not supported yet.
    """
    if model is None:
        raise UsageError(
            "--model: weights file is missing; use for example RUN/checkpoints/final/gan.safetensors"
            " of a train-sr run"
        )
    if overlap is None:
        overlap = min(32, tile // 4)
    if 4 * overlap > tile:
        raise UsageError(f"--overlap {overlap}: use at most a quarter of the tile, {tile // 4}")
    from trainer.device import choose_device
    from trainer.upscaling.upscale import build_upscaler, plan_tasks, upscale_files
    from trainer.weights.generators import load_generator

    if report is not None and (report.is_dir() or report.suffix.lower() != ".json"):
        raise UsageError(f"--report {report}: is not a .json file; name one")
    if report is not None:
        atomic.check_folder(report.parent, option="--report")
    tasks = plan_tasks(inputs, output, recursive=recursive)
    chosen = choose_device(device)
    loaded = load_generator(model, device=chosen)
    if report is not None:
        atomic.make_folder(report.parent)
    results: list[Result] = []
    with (
        console.stop_requests() as stopping,
        progress("upscale", total=len(tasks), unit="images") as advance,
    ):

        def report_tile(done: int, total: int) -> None:
            if total > 1:
                ending = ", then stop (Ctrl-C again: stop now)" if stopping() else ""
                advance(0, f"tile {done:,} of {total:,}{ending}")

        def report_result(result: Result) -> None:
            results.append(result)
            if result.reason and result.status != "skipped":
                console.warn(f"{result.input}: {result.reason}")
            advance(1, Path(result.input).name)

        upscaler = build_upscaler(
            loaded, tile=tile, overlap=overlap, device=chosen, on_tile=report_tile
        )
        try:
            upscale_files(
                tasks, upscaler, overwrite=overwrite, stopping=stopping, report=report_result
            )
        finally:
            _print_results(results, report, as_json=as_json)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        rest = f"; the others are in {output}" if len(failed) < len(tasks) else ""
        raise UsrganError(
            f"{len(failed)} of {len(tasks)} image{'s' * (len(tasks) != 1)} could not be upscaled,"
            f" for the reasons above{rest}"
        )


def _print_results(results: list[Result], report: Path | None, *, as_json: bool) -> None:
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("done", "skipped", "failed")
    }
    results = [_escape_paths(result) for result in results]
    summary = {**counts, "pictures": results}
    if report is not None:
        atomic.write_file(report, msgspec.json.format(msgspec.json.encode(summary), indent=2))
    if as_json:
        console.print_json(summary)
    else:
        for result in results:
            if result.status == "done":
                click.echo(f"{result.output}  {result.width}x{result.height}")
        if counts["skipped"]:
            plural = "s" * (counts["skipped"] != 1)
            click.echo(
                f"{counts['skipped']} existing file{plural} skipped (--overwrite replaces them)"
            )


def _escape_paths(result: Result) -> Result:
    """Return the result with escaped paths, because file names can be bytes that are not UTF-8."""
    return msgspec.structs.replace(
        result,
        input=console.printable(result.input),
        output=console.printable(result.output),
        reason=console.printable(result.reason),
    )
