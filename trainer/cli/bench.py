"""`bench-sr`: throughput as ratios, measured beside a floor and a peer in one run."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shards.errors import UsageError
from shards.terminal import console
from shards.version import __version__
from trainer.cli.bench_output import print_result
from trainer.cli.bench_train import train_command


@click.group(
    cls=console.group_class("bench-sr prep --src photos"), context_settings=console.SETTINGS
)
@click.version_option(__version__, prog_name="bench-sr")
def bench_main() -> None:
    """Measure speed beside its floor and a peer, in one run."""


@bench_main.command(
    "prep", cls=console.command_class("bench-sr prep --src photos --rounds 3 --json")
)
@click.option(
    "--src", required=True, type=console.FilePath(), help="Folder of real photos; 150 megapixels or more.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), default=None, metavar="N", show_default="cores",
    help="Processes.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N",
    help="Rounds of all measurements, at most three of BasicSR's way; medians are printed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def prep_command(src: Path, workers: int | None, rounds: int, *, as_json: bool) -> None:
    """Measure prep-shards: CPU time over the floor, parallel efficiency, speed over BasicSR."""
    from trainer.bench.prep import bench_prep, format_result

    result = bench_prep(
        src, workers=workers or os.cpu_count() or 1, rounds=rounds, options=(), say=console.say
    )
    print_result(result, format_result, as_json=as_json)


@bench_main.command("data", cls=console.command_class("bench-sr data --src photos --json"))
@click.option(
    "--src", type=console.FilePath(),
    help="Folder of real photos.  [default: noise with the spectrum of photos]",
)  # fmt: skip
@click.option(
    "--pairs", type=click.IntRange(256), default=8000, show_default=True, metavar="N",
    help="Patch pairs that each reader reads per round; about as many are made. Few pairs overstate the cost of"
    " planning chunks.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="Rounds of all measurements; medians are printed.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, metavar="N",
    help="Pairs of patches per batch.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def data_command(
    src: Path | None, pairs: int, rounds: int, batch_size: int, *, as_json: bool
) -> None:
    """Measure the reader beside webdataset, and the cost of starting and resuming."""
    from trainer.bench.data import bench_data, format_result

    result = bench_data(src, pairs=pairs, rounds=rounds, batch_size=batch_size, say=console.say)
    print_result(result, format_result, as_json=as_json)


@bench_main.command(
    "upscale",
    cls=console.command_class("bench-sr upscale --json"),
    context_settings=console.SETTINGS | {"ignore_unknown_options": True},
    short_help="(comes with a later version)",
    help="Measure upscale (comes with a later version).",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def upscale_command(arguments: tuple[str, ...]) -> None:
    """Refuse: a later version measures it."""
    raise UsageError("bench-sr upscale: comes with a later version of usrgan")


bench_main.add_command(train_command)
