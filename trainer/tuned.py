"""Which way of a step is the fastest on this machine: what `bench-sr train --tune` found, and "auto" takes.

A run keeps the way that it began with, so that going on gives the bits that it would have had.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import msgspec
import torch

from shards.errors import ConfigError
from shards.io import atomic
from shards.io.cache_dir import kept
from trainer.config.schema import AUTO, Config, SpeedConfig, Stage
from trainer.device import describe_device, use_bf16
from trainer.speed import resolve
from trainer.ways import DEFAULT

SCALE, SIDE = 4, 128
"""Of the paper's patches, for which `bench-sr train` measures."""
Settings = Mapping[str, str]
"""Of `SpeedConfig`, by name."""


class Tuned(msgspec.Struct, frozen=True):
    """The fastest of the ways that were tried."""

    way: str
    """Its name for `bench-sr train --impl`."""
    settings: dict[str, str]
    speedup: float
    """Over the default."""
    measured: date


class Shape(msgspec.Struct, frozen=True):
    """What the fastest way depends on, beside the configuration and the machine."""

    stage: Stage
    scale: int
    side: int
    """Of the HR patches that training takes, pixels."""
    world: int = 1
    """Processes that share a batch."""


def settle(
    config: Config, shape: Shape, *, device: torch.device, before: Settings | None = None
) -> SpeedConfig:
    """`speed.*` with every "auto" decided: as `before` if there was one, else as measured here, else by default.

    What cannot be on this device, beside what was asked for, or is of another version, is by default.

    Raises:
        ConfigError: a setting that was asked for cannot be on this device or with these networks.
    """
    bf16 = use_bf16(config, device)
    wishes = before
    if wishes is None:
        found = look_up(config, shape, device=device)
        wishes = found.settings if found else {}

    def decided(speed: SpeedConfig) -> SpeedConfig:
        wanted = msgspec.structs.replace(config, speed=speed)
        return resolve(wanted, device=device, bf16=bf16, world=shape.world)

    speed = config.speed
    settled = decided(speed)
    for name, value in wishes.items():
        if getattr(speed, name, "") == AUTO:
            with contextlib.suppress(ConfigError, msgspec.ValidationError):
                more = msgspec.convert(msgspec.structs.asdict(speed) | {name: value}, SpeedConfig)
                settled, speed = decided(more), more
    return settled


def look_up(config: Config, shape: Shape, *, device: torch.device) -> Tuned | None:
    """What was measured for such a step on such a machine; what cannot be read counts as not measured."""
    path = _file(config, shape, device)
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None if path is None else msgspec.json.decode(path.read_bytes(), type=Tuned)
    return None


def advice(
    config: Config, shape: Shape, *, device: torch.device, speed: Settings, run: Path
) -> str:
    """What there is to say about the way that a run's steps go; empty if nothing."""
    found = look_up(config, shape, device=device)
    if found is not None:
        if speed != msgspec.structs.asdict(settle(config, shape, device=device)):
            return (
                f"steps go as they began or as set; {found.way} was measured to be the fastest here"
            )
        whole = "" if speed == found.settings else ", as far as it can be"
        gain = f"{found.speedup:.2f} times as fast as the default on this machine"
        return "" if found.way == DEFAULT else f"steps go the way {found.way}{whole}: {gain}"
    measurable = (shape.scale, shape.side) == (SCALE, SIDE)
    if device.type == "cpu" or not measurable or AUTO not in _values(config.speed):
        return ""
    batch = config.batch_size // shape.world
    command = f"bench-sr train --config {shlex.quote(f'{run}/config.toml')} --stage {shape.stage}"
    return (
        f"steps may be faster another way; {command} --batch {batch} --tune finds it for new runs"
    )


def remember(config: Config, shape: Shape, found: Tuned, *, device: torch.device) -> Path | None:
    """Keep it for later runs; None where nothing can be kept.

    Raises:
        WriteFailed: the folder cannot be written.
    """
    path = _file(config, shape, device)
    if path is not None:
        atomic.make_folder(path.parent)
        atomic.write_file(path, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return path


def _values(speed: SpeedConfig) -> list[str]:
    return list(msgspec.structs.asdict(speed).values())


def _file(config: Config, shape: Shape, device: torch.device) -> Path | None:
    """By the content of all that a step's time depends on."""
    networks: list[msgspec.Struct] = [config.generator]
    if shape.stage == "gan":
        # whatever its weights are, they cost the same
        content = msgspec.structs.replace(config.content, features="random")
        networks += [config.discriminator, content]
    bf16 = use_bf16(config, device)
    usual = msgspec.structs.replace(config, speed=SpeedConfig())
    depends = {
        "beside": resolve(usual, device=device, bf16=bf16, world=shape.world),
        "device": describe_device(device),
        "torch": str(torch.__version__),
        "shape": (shape.stage, shape.scale, shape.side),
        "bf16": bf16,
        "precision": config.precision,
        "patches": config.batch_size // (shape.world * config.accumulate),
        "networks": networks,
    }
    digest = hashlib.sha256(msgspec.json.encode(depends, order="sorted"))
    return kept(f"step-{digest.hexdigest()[:16]}.json")
