"""`bench-sr train`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import click

from shards.errors import UsageError
from shards.io.remote import Location
from shards.terminal import console
from trainer.cli.bench_output import print_result

PEER_NAMES = ("peer-fp32", "peer-tf32", "peer-amp", "peer-amp-cl", "peer-lean")
ALL, NONE = ("all",), ("none",)


class Milliseconds(click.ParamType[float]):
    """A time such as `10ms`, converted to milliseconds."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Milliseconds of a number with its unit, ms or s."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(value))
        if match is None:
            self.fail(f"{value} is not a time; write 10ms", param, ctx)
        return float(match[1]) * (1000 if match[2] == "s" else 1)


def _split(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command("train", cls=console.command_class("bench-sr train --stage both --batch 32,64,128"))
@click.option(
    "--stage", type=click.Choice(["psnr", "gan", "both"]), default="both", show_default=True,
    help="Training stage.",
)  # fmt: skip
@click.option("--config", default="usrgan", show_default=True, help="Preset or TOML file of the networks.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option(
    "--batch", "--batch-size", "batches", default="32", show_default=True, callback=_split, metavar="N[,N...]",
    help="Pairs of patches per step.",
)  # fmt: skip
@click.option(
    "--impl", "implementations", default="auto", show_default=True, callback=_split,
    metavar="NAME[,NAME...]", help="Implementations of the step, headline first. Names: docs/internals/gpu-runbook.md.",
)  # fmt: skip
@click.option(
    "--peer", "peers", default="all", show_default=True, callback=_split, metavar="NAME[,NAME...]",
    help=f"Variants of BasicSR's step: all, none, or a list of {', '.join(PEER_NAMES)}.",
)  # fmt: skip
@click.option(
    "--shards", type=console.FolderOrUrl(), metavar="DIR|URL",
    help="Also measure how long steps wait for batches of this data set.",
)  # fmt: skip
@click.option(
    "--fake-step", type=Milliseconds(), metavar="TIME",
    help="Measure only that wait, with steps that sleep for TIME (10ms), as beside a busy GPU.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, metavar="N",
    help="Decoding threads (data.workers).",
)  # fmt: skip
@click.option("--vgg", type=console.FilePath(), help="VGG-19 weights.  [default: random weights]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Device of the steps.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="Interleaved timing rounds; one extra warm-up round is discarded.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=None, metavar="N", show_default="20 on a GPU, else 1; 500 fake",
    help="Steps of each implementation per round.",
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
    """Measure the training step: patches per second, share of the floor, speed over BasicSR."""
    if not batches or not all(size.isdecimal() and int(size) for size in batches):
        raise UsageError(f"--batch {','.join(batches)}: not numbers; write for example 32,64,128")
    sizes = [int(size) for size in batches]
    if fake_step is not None:
        _run_fake(shards, fake_step, sizes[0], steps or 500, workers, save, as_json=as_json)
        return
    from trainer.bench.data_wait import measure_data_wait
    from trainer.bench.implementations import IMPLEMENTATIONS
    from trainer.bench.train import Measurement, bench_train, format_result
    from trainer.config.load import load_config
    from trainer.config.schema import STAGES
    from trainer.device import choose_device

    chosen = choose_device(device)
    known = tuple(name for name in PEER_NAMES if chosen.type == "cuda" or name != "peer-tf32")
    names = known if peers == ALL else () if peers == NONE else peers
    _check_names("--peer", names, [*ALL, *NONE, *PEER_NAMES])
    _check_names("--impl", implementations, list(IMPLEMENTATIONS))
    if not implementations:
        raise UsageError(f"--impl: name at least one of {', '.join(IMPLEMENTATIONS)}")
    if vgg is None:
        overrides = (*overrides, "content.features=random")
    overrides = (*overrides, f"data.workers={workers}")
    configs = {
        name: load_config(config, stage=name, overrides=overrides)
        for name in STAGES
        if stage in (name, "both")
    }
    measure_wait = partial(measure_data_wait, device=chosen, content_weights=vgg)
    measurement = Measurement(
        implementations=implementations,
        peers=names,
        device=chosen,
        rounds=rounds,
        steps=steps or (20 if chosen.type == "cuda" else 1),
        content_weights=vgg,
        measure_data_wait=partial(measure_wait, shards) if shards else None,
    )
    sets = "".join(f" --set {each}" for each in overrides)
    command = f"bench-sr train --stage {stage} --config {config} --batch {','.join(batches)}{sets}"
    result = bench_train(
        configs, batches=sizes, measurement=measurement, command=command, say=console.say
    )
    print_result(result, format_result, as_json=as_json, save=save)


def _run_fake(
    shards: Location | None,
    step_ms: float,
    batch: int,
    steps: int,
    workers: int,
    save: Path | None,
    *,
    as_json: bool,
) -> None:
    from trainer.bench.data_wait import format_result, run_fake_training
    from trainer.config.schema import DataConfig

    if shards is None:
        raise UsageError(
            "--shards: name the folder that prep-shards wrote, for example --shards shards/"
        )
    config = DataConfig(workers=workers)
    result = run_fake_training(
        shards, step_ms=step_ms, batch_size=batch, steps=steps, config=config
    )
    print_result(result, format_result, as_json=as_json, save=save)


def _check_names(option: str, names: tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name}: no such name; choose from {', '.join(known)}")
