"""A configuration as TOML that `--config` takes again."""

from __future__ import annotations

from typing import Any

import msgspec

from shards import __version__
from trainer.config import Config, Stage, Table, differences, flat, put


def to_toml(config: Config) -> str:
    """The resolved configuration of one stage as TOML that `--config` takes again."""
    return _toml(msgspec.to_builtins(config))


def stages_to_toml(configs: dict[Stage, Config]) -> str:
    """One TOML for several stages: what they share, then a table of what each has of its own.

    Its first line says which version has these settings.
    """
    first, *others = configs.values()
    apart = {name for other in others for name in differences(first, other)}
    table: Table = {}
    for name, value in flat(first).items():
        if name not in apart:
            put(table, name, value)
    for stage, config in configs.items():
        for name, value in flat(config).items():
            if name in apart:
                put(table, f"{stage}.{name}", value)
    return f"# usrgan {__version__}\n" + _toml(table)


def _toml(table: Table, name: str = "") -> str:
    own = [
        f"{key} = {_toml_value(value)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    text = "\n".join([f"[{name}]"] * bool(name and own) + own) + "\n" * bool(own)
    for key, value in table.items():
        if isinstance(value, dict):
            text += "\n" * bool(text) + _toml(value, f"{name}.{key}" if name else key)
    return text


def _toml_value(value: Any) -> str:  # noqa: ANN401  any leaf of the configuration
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(list(value) if isinstance(value, tuple) else value)
