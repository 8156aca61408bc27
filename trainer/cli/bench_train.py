"""`bench-sr train`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click
import msgspec

from shards.errors import UsageError
from shards.io import atomic
from shards.io.remote import Location
from shards.terminal import console

PEERS = ("peer-fp32", "peer-tf32", "peer-amp", "peer-amp-cl", "peer-lean")


class Milliseconds(click.ParamType[float]):
    """`10ms`."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Milliseconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(value))
        if match is None:
            self.fail(f"{value} is no time; write 10ms", param, ctx)
        return float(match[1]) * (1000 if match[2] == "s" else 1)


def _split(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command("train", cls=console.command_class("bench-sr train --stage both --batch 32,64,128"))
@click.option(
    "--stage", type=click.Choice(["psnr", "gan", "both"]), default="both", show_default=True,
    help="Which training step.",
)  # fmt: skip
@click.option("--config", default="usrgan", show_default=True, help="Preset or TOML file of the networks.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option(
    "--batch", "--batch-size", "batches", default="32", show_default=True, callback=_split, metavar="N[,N...]",
    help="Pairs of patches in a step.",
)  # fmt: skip
@click.option(
    "--impl", "implementations", default="auto", show_default=True, callback=_split,
    metavar="NAME[,NAME...]", help="Ways of doing it; the first is the headline. See docs/internals/gpu-runbook.md.",
)  # fmt: skip
@click.option(
    "--peer", "peers", default="all", show_default=True, callback=_split, metavar="NAME[,NAME...]",
    help=f"BasicSR's way: all, none, or of {', '.join(PEERS)}.",
)  # fmt: skip
@click.option(
    "--shards", type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Also measure the wait for the batches of this data set.",
)  # fmt: skip
@click.option(
    "--fake-step", type=Milliseconds(), metavar="TIME",
    help="Only that wait, with steps that do nothing for so long (10ms): what the reader costs a busy GPU.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, metavar="N",
    help="Threads that decode (data.workers).",
)  # fmt: skip
@click.option(
    "--vgg", type=console.FilePath(), help="VGG-19 weights; without them they are random."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="So often all take turns, after one round that does not count.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=None, metavar="N", show_default="20 on a GPU, else 1; 500 fake",
    help="Steps of each in a round.",
)  # fmt: skip
@click.option(
    "--save", type=console.FilePath(), metavar="FILE", help="Also write the JSON to FILE."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def train_command(
    stage: str,
    config: str,
    overrides: tuple[str, ...],
    batches: tuple[str, ...],
    implementations: tuple[str, ...],
    peers: tuple[str, ...],
    shards: Location | None,
    fake_step: float | None,
    workers: int,
    vgg: Path | None,
    device: str,
    rounds: int,
    steps: int | None,
    save: Path | None,
    *,
    as_json: bool,
) -> None:
    """Measure the training step: patches a second, share of the floor, speed over BasicSR's way."""
    if not batches or not all(size.isdecimal() and int(size) for size in batches):
        raise UsageError(f"--batch {','.join(batches)}: write numbers, for example 32,64,128")
    sizes = [int(size) for size in batches]
    if fake_step is not None:
        _fake(shards, fake_step, sizes[0], steps or 500, workers, as_json=as_json)
        return
    from trainer.bench.implementations import IMPLEMENTATIONS
    from trainer.bench.result import lines
    from trainer.bench.train import bench_train
    from trainer.bench.wait import data_wait
    from trainer.config.load import load_config
    from trainer.config.schema import STAGES
    from trainer.device import choose_device

    chosen = choose_device(device)
    known = [name for name in PEERS if chosen.type == "cuda" or name != "peer-tf32"]
    wanted = known if peers == ("all",) else [] if peers == ("none",) else list(peers)
    _check("--peer", wanted, ["all", "none", *PEERS])
    _check("--impl", list(implementations), list(IMPLEMENTATIONS))
    usual_steps = 20 if chosen.type == "cuda" else 1
    if vgg is None:
        overrides = (*overrides, "content.features=random")
    overrides = (*overrides, f"data.workers={workers}")
    configs = {
        name: load_config(config, stage=name, overrides=overrides)
        for name in STAGES
        if stage in (name, "both")
    }
    found = bench_train(
        configs,
        batches=sizes,
        implementations=implementations,
        peers=wanted,
        device=chosen,
        rounds=rounds,
        steps=steps or usual_steps,
        small=False,
        content_weights=vgg,
        data_wait=partial(data_wait, shards, device=chosen, content_weights=vgg)
        if shards
        else None,
        command=_command(config, overrides, stage, batches),
        say=console.say,
    )
    _finish(found, lines(found), save=save, as_json=as_json)


def _fake(
    shards: Location | None, step_ms: float, batch: int, steps: int, workers: int, *, as_json: bool
) -> None:
    from trainer.bench.wait import fake_train, lines
    from trainer.config.schema import DataConfig

    if shards is None:
        raise UsageError(
            "--shards: name the folder that prep-shards wrote, for example --shards shards/"
        )
    config = DataConfig(workers=workers)
    found = fake_train(shards, step_ms=step_ms, batch_size=batch, steps=steps, config=config)
    _tell(found, lines(found), as_json=as_json)


def _finish(found: object, lines: Iterable[str], *, save: Path | None, as_json: bool) -> None:
    if save is not None:
        atomic.write_file(save, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    _tell(found, lines, as_json=as_json)


def _tell(found: object, lines: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        console.print_json(found)
    else:
        for line in lines:
            click.echo(line)


def _check(option: str, given: list[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"{option} {name}: there is no such way; choose of {', '.join(known)}")
    if not given and option == "--impl":
        raise UsageError(f"{option}: name at least one of {', '.join(known)}")


def _command(config: str, overrides: tuple[str, ...], stage: str, batches: tuple[str, ...]) -> str:
    sets = "".join(f" --set {each}" for each in overrides)
    return f"bench-sr train --stage {stage} --config {config} --batch {','.join(batches)}{sets}"
