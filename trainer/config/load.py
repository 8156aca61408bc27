"""A configuration from a preset or a TOML file and `--set`, with "did you mean".

A file holds the settings of both stages; tables `[psnr]` and `[gan]` override them for one stage,
and `--set key=value` overrides everything. Presets lie in `configs/`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from shards.errors import ConfigError
from shards.version import __version__
from trainer.config.schema import STAGES, Config, Stage
from trainer.config.settings import SETTINGS, Table, find_conflicts, leaves

PAPER_PRESET = "usrgan"


def load_config(source: str, *, stage: Stage, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of one stage from a preset name or a TOML file, with `key=value` overrides.

    Raises:
        ConfigError: the file is missing, or a key or value is invalid; names the nearest valid one.
    """
    path = find_config(source)
    table = _read_toml(path)
    stage_tables: dict[str, Table] = {}
    for name in STAGES:
        stage_table = table.pop(name, {})
        if not isinstance(stage_table, dict):
            raise ConfigError(
                f"{path}: {name} must be a table with the settings of that stage; write [{name}]"
            )
        stage_tables[name] = stage_table
    for checked in (table, *stage_tables.values()):  # finds a typo in the other stage's table, too
        _check_keys(checked, where=str(path), in_file=True)
    table = _merge(table, stage_tables[stage])
    config = _convert(table, where=str(path))
    set_by: dict[str, str] = {}
    for override in overrides:
        setting = _parse_override(override, stage=stage)
        table = _merge(table, setting)
        config = _convert(table, where=f"--set {override}")
        set_by |= dict.fromkeys((name for name, _ in leaves(setting)), f"--set {override}")
    for names, message in find_conflicts(config):
        where = next((set_by[name] for name in names if name in set_by), str(path))
        raise ConfigError(f"{where}: {message}")
    return config


def find_config(source: str) -> Path:
    """Return the file of a preset name, or the path itself.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(source)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(f"--config {source}: no such file; presets: {', '.join(list_presets())}")
    preset = presets_folder() / f"{source}.toml"
    if preset.is_file():
        return preset
    near = difflib.get_close_matches(source, list_presets(), n=1)
    presets = ", ".join(list_presets())
    hint = f"did you mean {near[0]}?" if near else f"use one of {presets}, or name a .toml file"
    raise ConfigError(f"--config {source}: no such preset; {hint}")


def list_presets() -> list[str]:
    """Return the names of the presets that come with usrgan."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def presets_folder() -> Path:
    """Return `configs/` of a checkout, or its copy inside the installed package."""
    trainer = Path(__file__).parent.parent
    packed = trainer / "presets"
    return packed if packed.is_dir() else trainer.parent / "configs"


def put_setting(table: Table, name: str, value: Any) -> None:  # noqa: ANN401  any leaf of the configuration
    """Set a dotted name in nested tables."""
    *parents, last = name.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value


def _read_toml(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors add a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error}); correct that line") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None


def _parse_override(text: str, *, stage: Stage) -> Table:
    """Return the setting of one `--set`; an empty table if its key names the other stage (`gan.optim.lr=2e-4`)."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or key in STAGES:
        raise ConfigError(f"--set {text}: write key=value, for example --set optim.lr=2e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    first, _, rest = key.partition(".")
    table: Table = {}
    put_setting(table, rest if first in STAGES else key, parsed)
    _check_keys(table, where=f"--set {text}")
    return {} if first in STAGES and first != stage else table


def _merge(base: Table, over: Table) -> Table:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_keys(table: Table, *, where: str, in_file: bool = False) -> None:
    tables = {name.split(".")[0] for name in SETTINGS if "." in name}
    for name, value in leaves(table):
        if name in SETTINGS:
            continue
        if name in tables:
            raise ConfigError(f"{where}: {name} is a table, not {value!r}; write {name}.KEY")
        same_key = [
            known for known in sorted(SETTINGS) if known.split(".")[-1] == name.split(".")[-1]
        ]
        near = difflib.get_close_matches(name, same_key or SETTINGS, n=1) or same_key
        hint = f"did you mean {near[0]}?" if near else "see --print-config for all keys"
        if in_file:
            hint += f" (this is usrgan {__version__}, the file may be of another version)"
        raise ConfigError(f"{where}: unknown key {name}; {hint}")


def _convert(table: Table, *, where: str) -> Config:
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").partition("[")[0]
        raise ConfigError(f"{where}: {_explain(problem, name, table)}") from None


def _explain(problem: str, name: str, table: Table) -> str:
    """Return a validation error of msgspec in the user's words."""
    if name not in SETTINGS:
        return f"{name}: {problem}" if name else problem
    setting = SETTINGS[name]
    value = dict(leaves(table)).get(name)
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and _is_out_of_bounds(problem)
    ):
        meta = setting.meta
        if meta.gt is not None and not value > meta.gt:
            return f"{name} = {value}: must be more than {meta.gt:g}"
        if meta.ge is not None and not value >= meta.ge:
            bound = f"must be at least {meta.ge:g}" if meta.ge else "must not be negative"
            return f"{name} = {value}: {bound}"
        if meta.lt is not None and not value < meta.lt:
            return f"{name} = {value}: must be below {meta.lt:g}"
        return f"{name} = {value}: must be at most {meta.le}"
    if "enum" in problem:
        problem += f"; choose one of {', '.join(get_args(setting.type))}"
    return f"{name}: {problem}"


def _is_out_of_bounds(problem: str) -> bool:
    return any(sign in problem for sign in ("`int` ", "`float` ", "out of range"))
