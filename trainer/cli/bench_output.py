"""Output of `bench-sr`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from shards.io import atomic
from shards.terminal import console

R = TypeVar("R")


def print_result(
    result: R,
    format_result: Callable[[R], Iterable[str]],
    *,
    as_json: bool,
    save: Path | None = None,
) -> None:
    """Print a result as text or as JSON, and write its JSON to `save`."""
    if save is not None:
        atomic.write_file(save, msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    if as_json:
        console.print_json(result)
    else:
        for line in format_result(result):
            click.echo(line)
