"""`bench-sr train --tune`: each way of the step beside the default one, and the fastest is kept for `train-sr`.

Every way has a process of its own: one that does not compile, runs out of memory or computes something else
(`bench.agree`) is told and left out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date

import msgspec
import torch

from shards.errors import ConfigError, UsageError
from trainer.bench.result import Train
from trainer.config.schema import Config, SpeedConfig, Stage
from trainer.device import describe_device, use_bf16
from trainer.speed import resolve
from trainer.tuned import SCALE, SIDE, Shape, Tuned, remember
from trainer.ways import DEFAULT, IMPLEMENTATIONS

LEAST_GAIN = 1.03
"""What is not faster by more than that is not taken: it may be noise."""


class Tried(msgspec.Struct, frozen=True):
    """One way."""

    way: str
    speedup: float | None
    """Over the default way; None where it cannot be."""
    reason: str = ""


class TunedStage(msgspec.Struct, frozen=True):
    """What is the fastest for a stage and a batch size."""

    stage: Stage
    batch: int
    device: str
    tried: list[Tried]
    best: str
    speedup: float
    kept: str
    """The file that `train-sr` finds it in; empty where there is no place for one."""


def tune(
    configs: Mapping[Stage, Config],
    *,
    batches: Sequence[int],
    ways: Sequence[str],
    device: torch.device,
    options: Sequence[str],
    say: Callable[[str], None],
) -> list[TunedStage]:
    """Try ways of each stage at each batch size; `options` are those of `bench-sr train` for the configuration.

    Raises:
        UsageError: none of the ways can be here.
    """
    found = []
    for stage, wanted in configs.items():
        for batch in batches:
            config = msgspec.structs.replace(wanted, batch_size=batch)
            possible = list(_possible(config, ways, device))
            if not possible:
                named, where = ",".join(ways), describe_device(device)
                raise UsageError(
                    f"--impl {named}: stage {stage} has no such way beside the default on {where}"
                )
            tried = []
            for number, way in enumerate(possible, start=1):
                say(f"stage {stage}, batch {batch}: {way} ({number} of {len(possible)})")
                tried.append(_try(way, ["--stage", stage, "--batch", str(batch), *options]))
            found.append(_take_best(config, stage, tried, device))
    return found


def _possible(config: Config, ways: Sequence[str], device: torch.device) -> Iterator[str]:
    """Those that can be on a device and are not what the default comes to."""
    usual = _settings(config, DEFAULT, device)
    for way in ways:
        try:
            if _settings(config, way, device) != usual:
                yield way
        except ConfigError:
            continue


def _settings(config: Config, way: str, device: torch.device) -> SpeedConfig:
    wanted = msgspec.structs.replace(config, speed=IMPLEMENTATIONS[way])
    return resolve(wanted, device=device, bf16=use_bf16(config, device))


def _try(way: str, options: Sequence[str]) -> Tried:
    program = "from trainer.cli import bench_main; bench_main()"
    what = ["train", "--impl", f"{DEFAULT},{way}", "--peer", "none", "--json", *options]
    ended = subprocess.run(
        [sys.executable, "-c", program, *what], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1]
        return Tried(way, None, last.removeprefix("error: "))
    (stage,) = msgspec.json.decode(ended.stdout, type=Train).stages.values()
    return Tried(way, 1 / stage.speedup_over[way])


def _take_best(
    config: Config, stage: Stage, tried: Sequence[Tried], device: torch.device
) -> TunedStage:
    best, speedup = DEFAULT, 1.0
    for each in tried:
        if each.speedup is not None and each.speedup > max(speedup, LEAST_GAIN):
            best, speedup = each.way, each.speedup
    settings = msgspec.structs.asdict(_settings(config, best, device))
    kept = remember(
        config,
        Shape(stage, scale=SCALE, side=SIDE),
        Tuned(best, settings, speedup, date.today()),
        device=device,
    )
    return TunedStage(
        stage=stage,
        batch=config.batch_size,
        device=describe_device(device),
        tried=list(tried),
        best=best,
        speedup=speedup,
        kept=str(kept or ""),
    )


def lines(found: Sequence[TunedStage]) -> Iterator[str]:
    """The result for a person."""
    for each in found:
        yield f"stage {each.stage}, batch {each.batch}, on {each.device}: times as fast as {DEFAULT}"
        for way in each.tried:
            told = f"not taken: {way.reason}" if way.speedup is None else f"{way.speedup:.2f}"
            yield f"  {way.way:<22}{told}"
        if each.kept:
            yield f"  train-sr takes {each.best} for such steps on this machine from now on ({each.kept})"
        else:
            yield f"  {each.best} is the fastest, but there is no place to keep that: set XDG_CACHE_HOME"
