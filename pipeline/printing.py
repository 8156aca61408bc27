"""Printed results of `prep-shards`: the checks of --doctor, a forecast, a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shards.errors import UsrganError
from shards.messages import format_count
from shards.terminal import console

if TYPE_CHECKING:  # imported lazily, because --doctor must run where PIL is broken
    from pipeline.job import Job
    from pipeline.photos.scan import Scan
    from pipeline.stages.report import Report


def print_checks(*, as_json: bool) -> None:
    """Print the checks of this installation.

    Raises:
        UsrganError: a check found something broken.
    """
    from pipeline.doctor import check_installation

    checks = check_installation()
    if as_json:
        console.print_json(checks)
    else:
        for check in checks:
            click.echo(f"{check.state:<7} {check.what}: {check.found}")
            if check.mend:
                click.echo(f"        {check.mend}")
    broken = [check.what for check in checks if check.state == "broken"]
    if broken:
        raise UsrganError(f"--doctor: broken: {', '.join(broken)}; run the commands above")


def print_forecast(job: Job, scan: Scan, val_names: set[str], *, as_json: bool) -> None:
    """Print the forecast of a run."""
    from pipeline.forecast import format_forecast, make_forecast
    from pipeline.photos.scan import describe_layout

    forecast = make_forecast(scan, val_names, job.options)
    if as_json:
        console.print_json(forecast)
        return
    click.echo(describe_layout(scan, val_names))
    for line in format_forecast(forecast, workers=job.workers, out=job.url or str(job.out)):
        click.echo(line)


def print_report(report: Report) -> None:
    """Print the result of a run."""
    size = report.bytes / 2**20
    pairs = report.pairs
    if report.already_done:
        click.echo(
            f"{report.out}: is already finished (dataset_sha256 {report.dataset_sha256[:12]})"
        )
        return
    click.echo(
        f"{report.out}: {format_count(pairs['train'], 'training pair')} from"
        f" {format_count(report.photos['train'], 'photo')},"
        f" {format_count(pairs['val'], 'validation pair')} from"
        f" {format_count(report.photos['val'], 'photo')}, in {format_count(report.shards, 'shard')},"
        f" {size:,.1f} MiB (dataset_sha256 {report.dataset_sha256[:12]})"
    )
    if report.rejects:
        reasons = ", ".join(f"{count} {code}" for code, count in report.rejects.items())
        click.echo(f"rejected: {reasons} (see {report.out.rstrip('/')}/rejects.jsonl)")
    if not pairs["val"]:
        console.warn(
            "no validation photos, so training cannot select its best weights;"
            " use --val-fraction or --val-list"
        )
