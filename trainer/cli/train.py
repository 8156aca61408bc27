"""`train-sr`: shards to a super-resolution model, in two stages."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.errors import UsageError, UsrganError
from shards.io.remote import Location
from shards.terminal import console
from shards.terminal.progress import progress

if TYPE_CHECKING:
    from trainer.distributed.heartbeat import Heartbeat
    from trainer.distributed.process_group import ProcessGroup


@console.command(
    "train-sr",
    example="train-sr --shards shards/ --stage both\ntrain-sr --shards shards/ --stage psnr --config tiny --device cpu",
)
@click.option(
    "--shards",
    type=console.FolderOrUrl(),
    metavar="DIR|URL",
    help="Folder or URL that prep-shards wrote.",
)
@click.option(
    "--stage",
    type=click.Choice(["psnr", "gan", "both"]),
    default="both",
    show_default=True,
    help="psnr: L1 loss. gan: L1 + VGG-19 + adversarial, from the weights of stage psnr.",
)
@click.option(
    "--out",
    type=console.FilePath(),
    help="Run folder.  [default: runs/ and the preset's name]",
)
@click.option(
    "--config",
    "preset",
    default="usrgan",
    show_default=True,
    metavar="PRESET|FILE",
    help="Name of a preset, or a TOML file.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one setting (repeatable); psnr.KEY or gan.KEY for one stage alone.",
)
@click.option(
    "--init",
    type=console.FilePath(),
    help="Weights (.safetensors) from which the first stage starts.",
)
@click.option(
    "--vgg",
    type=console.FilePath(),
    envvar="USRGAN_VGG19",
    help="torchvision's VGG-19 weights for the content loss.  [default: $USRGAN_VGG19, or fetched]",
)
@click.option(
    "--lpips", type=console.FilePath(), metavar="FILE", envvar="USRGAN_LPIPS",
    help="torchvision's AlexNet or VGG-16: also validate by LPIPS, which then chooses the best of stage gan."
    "  [default: $USRGAN_LPIPS]",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Device; auto takes a GPU if torch sees one.",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Processes on this machine, each with its own GPU (or CPU cores: --device cpu).",
)  # fmt: skip
@click.option("--print-config", is_flag=True, help="Print the resolved settings as TOML and exit.")
@click.option("--dry-run", is_flag=True, help="Check everything, train nothing, write nothing.")
@click.option(
    "--report",
    "report_of",
    type=console.FilePath(),
    metavar="RUN",
    help="Rewrite RUN/report.html and RUN/figures/ and exit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def train_main(
    shards: Location | None,
    stage: str,
    out: Path | None,
    preset: str,
    overrides: tuple[str, ...],
    init: Path | None,
    vgg: Path | None,
    lpips: Path | None,
    device: str,
    gpus: int,
    *,
    print_config: bool,
    dry_run: bool,
    report_of: Path | None,
    as_json: bool,
) -> None:
    """Train a super-resolution model on shards.

    Stage psnr learns to reconstruct, stage gan to look real. A stopped or killed run resumes when
    you run the same command again.
    """
    given = click.get_current_context().meta[console.ARGUMENTS_KEY]
    from trainer.config.load import load_config
    from trainer.config.schema import STAGES
    from trainer.config.write import config_to_toml

    if report_of is not None:
        from trainer.reporting.report import write_report

        path = write_report(report_of)
        console.print_json({"report": str(path)}) if as_json else click.echo(str(path))
        return
    stages = [name for name in STAGES if stage in (name, "both")]
    debug = "--debug" in given
    with contextlib.nullcontext() if print_config else _report_early_errors(debug=debug):
        configs = {name: load_config(preset, stage=name, overrides=overrides) for name in stages}
        if shards is None and not print_config:
            raise UsageError(
                "--shards: name the folder that prep-shards wrote, for example --shards shards/"
            )
    if print_config:
        click.echo(config_to_toml(configs), nl=False)
        return
    assert shards is not None
    run = out or Path("runs") / Path(preset).stem

    from trainer.distributed.process_group import ProcessGroup, group_from_environment
    from trainer.runs.session import RunRequest, Terminal
    from trainer.runs.train import train

    ranks = group_from_environment()
    request = RunRequest(
        run=run,
        stages=configs,
        preset=console.printable(preset),
        shards=shards,
        device=device,
        init=init,
        content_weights=vgg,
        lpips=lpips,
    )

    def terminal(stop_requested: Callable[[], bool]) -> Terminal:
        """Return the user's terminal."""
        return Terminal(console.say, console.warn, progress, stop_requested)

    if gpus > 1 and ranks.world_size == 1:
        # check options and data once, before the ranks start
        planned = ProcessGroup(world_size=gpus, local_world_size=gpus)
        result = train(request, terminal(bool), dry_run=True, ranks=planned)
        if not dry_run:
            from trainer.distributed.launcher import launch_ranks

            sys.exit(launch_ranks(given, count=gpus))
    else:
        with (
            console.stop_requests(
                also=(signal.SIGUSR1,), insist=ranks.world_size == 1
            ) as stop_requested,
            _watch_ranks(ranks, stop_requested=stop_requested, debug=debug) as heartbeat,
        ):
            if ranks.world_size > 1 and gpus not in (1, ranks.local_world_size):
                raise UsageError(
                    f"--gpus {gpus}: torchrun started {ranks.local_world_size} processes on this machine;"
                    " omit --gpus"
                )
            result = train(
                request,
                terminal(stop_requested),
                dry_run=dry_run,
                ranks=ranks,
                heartbeat=heartbeat,
            )
    if ranks.is_main:
        _print_result(result, as_json=as_json, dry_run=dry_run)
    if ranks.world_size > 1:
        from trainer.distributed.heartbeat import exit_now

        exit_now(0)


def _print_result(result: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        console.print_json(result)
    elif dry_run:
        click.echo("all checks passed; nothing was trained or written")
    else:
        for stage in result["stages"]:
            best = "  ".join(f"{name} {value:.4f}" for name, value in stage["best"].items())
            click.echo(
                f"stage {stage['stage']}: {stage['patches_seen']:,} patches  best {best or 'not validated'}"
            )
        click.echo(f"report  {result['report']}\nweights {result['weights']}")


def _print_error(error: BaseException, *, debug: bool) -> int:
    """Print an error as the command line does; return its exit code."""
    try:
        with console.report_errors(debug=debug):
            raise error
    except SystemExit as exit_:
        return int(exit_.code or 0)


@contextlib.contextmanager
def _report_early_errors(*, debug: bool) -> Iterator[None]:
    """Report an error that precedes `_watch_ranks` to the other ranks, which would wait for this one."""
    try:
        yield
    except UsrganError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        from trainer.distributed.group_lifetime import report_early_failure
        from trainer.distributed.process_group import group_from_environment
        from trainer.distributed.rendezvous import Failure

        ranks = group_from_environment()
        if ranks.world_size == 1:
            raise
        failure = Failure(str(error), _print_error(error, debug=debug))
        with console.stop_requests(also=(signal.SIGUSR1,)) as stopping:
            report_early_failure(ranks, failure, stop_requested=stopping)


@contextlib.contextmanager
def _watch_ranks(
    ranks: ProcessGroup, *, stop_requested: Callable[[], bool], debug: bool
) -> Iterator[Heartbeat | None]:
    """Start the heartbeat if this process is one of several ranks; an error of one rank ends all."""
    if ranks.world_size == 1:
        yield None
        return
    from trainer.distributed.group_lifetime import end_all_on_error
    from trainer.distributed.heartbeat import Heartbeat, silence_seconds
    from trainer.distributed.rendezvous import connect_store

    heartbeat = Heartbeat(
        connect_store(ranks, stop_requested=stop_requested),
        ranks,
        silence=silence_seconds(),
        print_error=console.print_error,
        stop_requested=stop_requested,
    )
    heartbeat.announce_ready()
    with end_all_on_error(ranks, heartbeat, print_error=partial(_print_error, debug=debug)):
        yield heartbeat
