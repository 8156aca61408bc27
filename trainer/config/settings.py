"""The settings of the schema as a list, and the conflicts that types and bounds cannot express."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

from trainer.config.policy import Condition, Policy, join
from trainer.config.schema import Config

Table = dict[str, Any]


class Setting(NamedTuple):
    """One setting as its documentation, its checks and a resumed run need it."""

    name: str
    """Dotted name, such as "optim.lr"."""
    type: Any
    default: Any
    meta: Meta
    """Bounds and description."""
    policy: Policy
    """Its own rules joined with those of its table."""


def list_settings(
    struct: type[msgspec.Struct] = Config, *, prefix: str = "", outer: Policy | None = None
) -> Iterator[Setting]:
    """Yield every setting of a table and of the tables below it, in the order of the schema."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        kind, *notes = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        own = next((note for note in notes if isinstance(note, Policy)), Policy())
        policy = join(outer or Policy(), own)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from list_settings(kind, prefix=f"{prefix}{field.name}.", outer=policy)
        else:
            meta = next(note for note in notes if isinstance(note, Meta))
            yield Setting(prefix + field.name, kind, field.default, meta, policy)


SETTINGS = {setting.name: setting for setting in list_settings()}
"""Every setting by its dotted name."""


def flatten(config: Config) -> dict[str, Any]:
    """Return `{"generator.features": 64, ...}`: every setting by its dotted name."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in leaves(msgspec.to_builtins(config))
    }


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two configurations differ: `{name: (ours, theirs)}`."""
    other = flatten(theirs)
    return {
        name: (value, other[name]) for name, value in flatten(ours).items() if value != other[name]
    }


def may_change_on_resume(name: str, config: Config) -> bool:
    """Return whether a run with this configuration may resume with another value of a setting."""
    rule = SETTINGS[name].policy.may_change
    return rule.holds(config) if isinstance(rule, Condition) else rule


def find_conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each conflict: the settings concerned, and a message for the user."""
    for name, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield (name,), f"{name} = {value}: must be finite"
    generator, optim = config.generator, config.optim
    if generator.architecture == "srcnn" and generator.features < 6:
        yield (
            ("generator.features", "generator.architecture"),
            f"generator.features = {generator.features}: must be at least 6 for srcnn, whose second layer"
            " has half as many and needs one for each colour",
        )
    if config.batch_size > config.epoch_patches:
        yield (
            ("batch_size", "epoch_patches"),
            f"batch_size = {config.batch_size}: must not exceed epoch_patches = {config.epoch_patches};"
            " an epoch needs at least one step",
        )
    if config.batch_size % config.accumulate:
        yield (
            ("accumulate", "batch_size"),
            f"accumulate = {config.accumulate}: must divide batch_size = {config.batch_size};"
            " the micro-batches of a step have equal size",
        )
    if any(not 0 < fraction < 1 for fraction in optim.milestones):
        yield (
            ("optim.milestones",),
            f"optim.milestones = {list(optim.milestones)}: must be fractions of the stage, between 0 and 1",
        )
    if optim.schedule == "multistep" and not optim.milestones:
        yield (
            ("optim.schedule", "optim.milestones"),
            "optim.schedule = multistep: needs optim.milestones, for example [0.5, 0.75]",
        )
    if optim.milestones and optim.schedule != "multistep":
        yield (
            ("optim.milestones", "optim.schedule"),
            f"optim.milestones: has no effect with optim.schedule = {optim.schedule}; use multistep",
        )


def leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
