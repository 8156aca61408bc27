"""`upscale-sr`: batch upscaling of files and folders."""

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
    help="Folder, or a .png, .jpg or .webp file for a single picture.",
)  # fmt: skip
@click.option(
    "-r",
    "--recursive",
    is_flag=True,
    help="Look into subfolders except hidden ones; the tree is mirrored.",
)
@click.option("--model", type=console.FilePath(), help="Weights, .safetensors.")
@click.option("--overwrite", is_flag=True, help="Upscale again what is there already.")
@click.option(
    "--tile", type=click.IntRange(16), default=256, show_default=True, metavar="N",
    help="Side of a tile, pixels; smaller needs less memory.",
)  # fmt: skip
@click.option(
    "--overlap", type=click.IntRange(0), show_default="32, or a quarter of a smaller tile", metavar="N",
    help="Pixels that neighbouring tiles share, at most a quarter of a tile.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)  # fmt: skip
@click.option(
    "--report", type=console.FilePath(), metavar="FILE", help="Write the results as JSON."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
def upscale_main(
    inputs: tuple[str, ...], output: Path, model: Path | None, tile: int, overlap: int | None, device: str,
    report: Path | None, *, recursive: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upscale pictures: files, folders and patterns.

    What is there already is skipped, so an interrupted run goes on when the same command is run
    again. A picture that cannot be read does not end the run; it is named, and the exit code is 1.

    Grey stays grey, Exif's turn is applied, and the colour profile goes along; Exif itself does not.
    Pictures of 16 bits a channel and with transparent pixels are refused for now.
    """
    if model is None:
        raise UsageError(
            "--model: name weights to upscale with, such as RUN/checkpoints/final/gan.safetensors"
            " of a train-sr run"
        )
    if overlap is None:
        overlap = min(32, tile // 4)
    if 4 * overlap > tile:
        raise UsageError(f"--overlap {overlap}: use at most a quarter of the tile, {tile // 4}")
    from trainer.device import choose_device
    from trainer.upscaling.upscale import picture_upscaler, plan, upscale_all
    from trainer.weights.generators import load_generator

    if report is not None and (report.is_dir() or report.suffix.lower() != ".json"):
        raise UsageError(f"--report {report}: is no .json file; name one")
    if report is not None:
        atomic.check_folder(report.parent, option="--report")
    tasks = plan(inputs, output, recursive=recursive)
    chosen = choose_device(device)
    loaded = load_generator(model, device=chosen)
    if report is not None:
        atomic.make_folder(report.parent)
    results: list[Result] = []
    with (
        console.stop_requests() as stopping,
        progress("upscale", total=len(tasks), unit="pictures") as advance,
    ):

        def tiled(done: int, total: int) -> None:
            if total > 1:
                ending = ", then it stops (Ctrl-C again: at once)" if stopping() else ""
                advance(0, f"tile {done:,} of {total:,}{ending}")

        def note(result: Result) -> None:
            results.append(result)
            if result.reason and result.status != "skipped":
                console.warn(f"{result.input}: {result.reason}")
            advance(1, Path(result.input).name)

        upscaler = picture_upscaler(loaded, tile=tile, overlap=overlap, device=chosen, tiled=tiled)
        try:
            upscale_all(tasks, upscaler, overwrite=overwrite, stopping=stopping, report=note)
        finally:
            _finish(results, report, as_json=as_json)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        rest = f"; the rest is in {output}" if len(failed) < len(tasks) else ""
        raise UsrganError(
            f"{len(failed)} of {len(tasks)} pictures could not be upscaled, for the reasons above{rest}"
        )


def _finish(results: list[Result], report: Path | None, *, as_json: bool) -> None:
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("done", "skipped", "failed")
    }
    results = [_printable(result) for result in results]
    described = {**counts, "pictures": results}
    if report is not None:
        atomic.write_file(report, msgspec.json.format(msgspec.json.encode(described), indent=2))
    if as_json:
        console.print_json(described)
    else:
        for result in results:
            if result.status == "done":
                click.echo(f"{result.output}  {result.width}x{result.height}")
        if counts["skipped"]:
            click.echo(f"{counts['skipped']} were there already (--overwrite does them again)")


def _printable(result: Result) -> Result:
    """The result with paths that any terminal and JSON can hold: file names are bytes."""
    return msgspec.structs.replace(
        result,
        input=console.printable(result.input),
        output=console.printable(result.output),
        reason=console.printable(result.reason),
    )
