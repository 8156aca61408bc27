"""`train-sr`: shards to a super-resolution model, in two stages."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.errors import UsageError
from shards.io.remote import Location
from shards.terminal import console
from shards.terminal.progress import progress

if TYPE_CHECKING:
    from trainer.distributed.heartbeat import Heartbeat
    from trainer.distributed.process_group import ProcessGroup as Places


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
    help="Weights to start the (first) stage from, .safetensors.",
)
@click.option(
    "--vgg",
    type=console.FilePath(),
    envvar="USRGAN_VGG19",
    help="torchvision's VGG-19 weights for the content loss.  [default: $USRGAN_VGG19, or fetched]",
)
@click.option(
    "--lpips", type=console.FilePath(), metavar="FILE", envvar="USRGAN_LPIPS",
    help="torchvision's AlexNet or VGG-16: validate by LPIPS, too, which then chooses the best of stage gan."
    "  [default: $USRGAN_LPIPS]",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Processes on this machine, each with a GPU of its own (or CPU cores: --device cpu).",
)  # fmt: skip
@click.option("--print-config", is_flag=True, help="Print the resolved settings as TOML and end.")
@click.option("--dry-run", is_flag=True, help="Check everything, train nothing, write nothing.")
@click.option(
    "--report",
    "report_of",
    type=console.FilePath(),
    metavar="RUN",
    help="Make RUN/report.html and RUN/figures/ anew and end.",
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

    Stage psnr learns to reconstruct, stage gan to look real. A run that was stopped or killed goes
    on when the same command is run again.
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
    configs = {name: load_config(preset, stage=name, overrides=overrides) for name in stages}
    if print_config:
        click.echo(config_to_toml(configs), nl=False)
        return
    if shards is None:
        raise UsageError(
            "--shards: name the folder that prep-shards wrote, for example --shards shards/"
        )
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
        # mistakes are reported once, before there are processes
        asked = ProcessGroup(world_size=gpus, local_world_size=gpus)
        result = train(request, terminal(bool), dry_run=True, ranks=asked)
        if not dry_run:
            from trainer.distributed.launcher import launch_ranks

            sys.exit(launch_ranks(given, count=gpus))
    else:
        with (
            console.stop_requests(
                also=(signal.SIGUSR1,), insist=ranks.world_size == 1
            ) as stop_requested,
            _together(ranks, debug="--debug" in given) as heartbeat,
        ):
            if ranks.world_size > 1 and gpus not in (1, ranks.local_world_size):
                raise UsageError(
                    f"--gpus {gpus}: torchrun has started {ranks.local_world_size} processes on this machine;"
                    " leave --gpus out"
                )
            result = train(
                request,
                terminal(stop_requested),
                dry_run=dry_run,
                ranks=ranks,
                heartbeat=heartbeat,
            )
    if ranks.is_main:
        _tell(result, as_json=as_json, dry_run=dry_run)
    if ranks.world_size > 1:
        from trainer.distributed.heartbeat import exit_now

        exit_now(0)


def _tell(result: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        console.print_json(result)
    elif dry_run:
        click.echo("all checks passed; nothing was trained or written")
    else:
        for each in result["stages"]:
            best = "  ".join(f"{name} {value:.4f}" for name, value in each["best"].items())
            click.echo(
                f"stage {each['stage']}: {each['patches_seen']:,} patches  best {best or 'not validated'}"
            )
        click.echo(f"report  {result['report']}\nweights {result['weights']}")


@contextlib.contextmanager
def _together(ranks: Places, *, debug: bool) -> Iterator[Heartbeat | None]:
    """Watch over the other ranks, if there are any: what one of them cannot go on from ends all."""
    if ranks.world_size == 1:
        yield None
        return
    from trainer.distributed.heartbeat import Heartbeat, end_all_on_error, silence_seconds
    from trainer.distributed.rendezvous import connect_store

    def tell(error: BaseException) -> int:
        try:
            with console.report_errors(debug=debug):
                raise error
        except SystemExit as left:
            return int(left.code or 0)

    watch = Heartbeat(
        connect_store(ranks), ranks, silence=silence_seconds(), tell=console.print_error
    )
    watch.ready()
    with end_all_on_error(ranks, watch, tell=tell):
        yield watch
