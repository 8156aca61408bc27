"""`inspect-shards`: list and check what `prep-shards` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.errors import DamagedData, UsageError
from shards.terminal import console
from shards.version import __version__

if TYPE_CHECKING:
    from shards.format.manifest import Manifest
    from shards.io.remote import Location

FOLDER = click.argument("shards", type=console.FolderOrUrl())
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


@click.group(
    cls=console.group_class("inspect-shards verify shards/"), context_settings=console.SETTINGS
)
@click.version_option(__version__, prog_name="inspect-shards")
def main() -> None:
    """List and check the shards that prep-shards wrote."""


@main.command(cls=console.command_class("inspect-shards ls shards/"))
@FOLDER
@JSON
def ls(shards: Location, *, as_json: bool) -> None:
    """List the shards of a data set, in a folder or at a URL: samples, bytes, digests."""
    from shards.read.dataset import open_dataset

    manifest = open_dataset(shards).manifest
    if as_json:
        console.print_json(manifest)
    else:
        _print_listing(shards, manifest)


@main.command(
    "verify",
    short_help="Check every byte of a data set in a folder.",
    cls=console.command_class("inspect-shards verify --deep shards/"),
)
@FOLDER
@click.option("--deep", is_flag=True, help="Also decode every pair and check its sizes.")
@JSON
def verify_command(shards: Location, *, deep: bool, as_json: bool) -> None:
    """Check every byte against the manifest and both indices; exit 1 if anything differs."""
    if not isinstance(shards, Path):
        raise UsageError(f"{shards}: verify reads folders only; copy the data set to a folder")
    from shards.format.manifest import load_manifest
    from shards.messages import format_count
    from shards.terminal.progress import progress
    from shards.verify import verify

    manifest = load_manifest(shards)
    total = sum(len(split.shards) for split in manifest.splits.values())
    with progress("verify", total=total, unit="shards") as advance:
        findings = verify(shards, manifest, deep=deep, advance=advance)
    if as_json:
        console.print_json(
            {
                "dataset_sha256": manifest.dataset_sha256,
                "shards": total,
                "samples": sum(split.samples for split in manifest.splits.values()),
                "problems": [finding._asdict() for finding in findings],
            }
        )
    for finding in findings:
        console.warn(f"{shards / finding.file}: {finding.problem}")
    listed = {shard.name for split in manifest.splits.values() for shard in split.shards}
    damaged = {finding.file for finding in findings} & listed
    if damaged:
        raise DamagedData(
            f"{shards}: {len(damaged)} of {format_count(total, 'shard')} damaged;"
            " run the prep-shards command that made them with --repair"
        )
    if findings:
        raise DamagedData(
            f"{shards}: {format_count(total, 'shard')} complete, but other tars are in the folder;"
            " move them elsewhere"
        )
    if not as_json:
        samples = sum(split.samples for split in manifest.splits.values())
        click.echo(
            f"{shards}: {format_count(samples, 'pair')} in {format_count(total, 'shard')} verified,"
            f" no damage (dataset_sha256 {manifest.dataset_sha256[:12]})"
        )


def _print_listing(folder: Location, manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for title in ("shard", "split", "pairs", "MiB", "sha256"):
        table.add_column(title, justify="right" if title in ("pairs", "MiB") else "left")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            size = f"{shard.bytes / 2**20:,.1f}"
            table.add_row(shard.name, name, f"{shard.samples:,}", size, shard.sha256[:16])
    out = Console(highlight=False, markup=False)
    out.print(table)
    lr = manifest.hr_size // manifest.scale
    photos = manifest.photos
    out.print(
        f"\n{folder}: ×{manifest.scale}, {lr}×{lr} → {manifest.hr_size}×{manifest.hr_size},"
        f" {photos.train + photos.val} photos ({photos.rejected} left out),"
        f" kernel {manifest.resize.kernel} by {manifest.resize.implementation} {manifest.resize.version}",
        soft_wrap=True,
    )
    out.print(f"dataset_sha256 {manifest.dataset_sha256}", soft_wrap=True)
