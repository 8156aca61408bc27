"""Commands whose names are promised and whose work comes with a later version."""

from __future__ import annotations

import click

from shards.errors import UsageError
from shards.terminal import console


@console.command(
    "export-sr",
    example="export-sr runs/usrgan/checkpoints/final/gan.safetensors --format onnx -o model.onnx",
    any_options=True,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export_main(arguments: tuple[str, ...]) -> None:
    """Export a model for other programs: ONNX, ncnn (comes with a later version)."""
    raise UsageError(
        "export-sr: comes with a later version of usrgan; RUN/checkpoints/best-*/ already holds"
        " safetensors with BasicSR's layer names"
    )
