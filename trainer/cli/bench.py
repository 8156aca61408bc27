"""`bench-sr`: throughput as ratios, measured beside a floor and a peer in one run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from shards.errors import UsageError
from shards.terminal import console
from shards.version import __version__
from trainer.cli.bench_train import train_command

R = TypeVar("R")


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
    help="So often everything is measured, BasicSR's way at most three times; the middle one counts.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def prep_command(src: Path, workers: int | None, rounds: int, *, as_json: bool) -> None:
    """Measure prep-shards: CPU time over the least possible, efficiency, speed over BasicSR's way."""
    from trainer.bench.prep import bench_prep, lines

    found = bench_prep(
        src, workers=workers or os.cpu_count() or 1, rounds=rounds, options=(), say=console.say
    )
    _tell(found, lines, as_json=as_json)


@bench_main.command("data", cls=console.command_class("bench-sr data --src photos --json"))
@click.option(
    "--src", type=console.FilePath(),
    help="Folder of real photos.  [default: noise with the spectrum of photos]",
)  # fmt: skip
@click.option(
    "--pairs", type=click.IntRange(256), default=8000, show_default=True, metavar="N",
    help="Patch pairs that each way reads in a round; about so many are made. With few, chunks of 64"
    " end with their lane, and planning them shows.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="So often everything is measured; the middle one counts.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, metavar="N",
    help="Patches in a batch.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def data_command(
    src: Path | None, pairs: int, rounds: int, batch_size: int, *, as_json: bool
) -> None:
    """Measure the reader alone, beside webdataset and single files; starting and resuming."""
    from trainer.bench.data import bench_data, lines

    found = bench_data(src, pairs=pairs, rounds=rounds, batch_size=batch_size, say=console.say)
    _tell(found, lines, as_json=as_json)


def _tell(found: R, lines: Callable[[R], list[str]], *, as_json: bool) -> None:
    if as_json:
        console.print_json(found)
    else:
        for line in lines(found):
            click.echo(line)


def _later(name: str) -> None:
    @bench_main.command(
        name,
        cls=console.command_class(f"bench-sr {name} --json"),
        context_settings=console.SETTINGS | {"ignore_unknown_options": True},
        short_help="(comes with a later version)",
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise UsageError(f"bench-sr {name}: comes with a later version of usrgan")

    command.help = f"Measure {name} (comes with a later version)."


_later("upscale")
bench_main.add_command(train_command)
