"""Printed results of `prep-shards`: the checks of --doctor, a forecast, a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shards.errors import UsrganError
from shards.terminal import console

if TYPE_CHECKING:  # the rest is imported when it is needed: --doctor has to run where PIL is broken
    from pipeline.job import Job
    from pipeline.photos.scan import Scan
    from pipeline.stages.report import Report


def print_checks(*, as_json: bool) -> None:
    """The checks of this installation.

    Raises:
        UsrganError: something is broken.
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
        raise UsrganError(f"--doctor: {', '.join(broken)}: broken; the commands above mend it")


def print_forecast(job: Job, found: Scan, val_names: set[str], *, as_json: bool) -> None:
    """Print the forecast of a run."""
    from pipeline.forecast import format_forecast, make_forecast
    from pipeline.photos.scan import describe_layout

    made = make_forecast(found, val_names, job.options)
    if as_json:
        console.print_json(made)
        return
    click.echo(describe_layout(found, val_names))
    for line in format_forecast(made, workers=job.workers, out=job.url or str(job.out)):
        click.echo(line)


def print_report(report: Report) -> None:
    """Print the result of a run."""
    size = report.bytes / 2**20
    pairs = report.pairs
    if report.already_done:
        click.echo(f"{report.out}: is already done ({report.dataset_sha256[:12]})")
        return
    click.echo(
        f"{report.out}: {pairs['train']:,} training and {pairs['val']:,} validation pairs"
        f" of {report.photos['train']:,} and {report.photos['val']:,} photos"
        f" in {report.shards} shards, {size:,.1f} MiB ({report.dataset_sha256[:12]})"
    )
    if report.rejects:
        reasons = ", ".join(f"{count} {code}" for code, count in report.rejects.items())
        click.echo(f"left out: {reasons} (see {report.out.rstrip('/')}/rejects.jsonl)")
    if not pairs["val"]:
        console.warn("no photo validates, so training cannot tell its best weights")
