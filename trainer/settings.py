"""Settings as a person gives them: a preset or a TOML file, and `--set`, with "did you mean".

A file holds the settings of both stages; tables `[psnr]` and `[gan]` override them for one stage,
and `--set key=value` overrides everything. Presets lie in `configs/`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from shards import __version__
from shards.errors import ConfigError
from trainer.config import STAGES, Config, Stage, Table, faults, leaves, put


def load_config(source: str, *, stage: Stage, overrides: Sequence[str] = ()) -> Config:
    """Resolve preset name or TOML file `source` for one stage, with `key=value` overrides.

    Raises:
        ConfigError: no such file, or a key or value that cannot be; names the nearest valid one.
    """
    path = find(source)
    table = _read(path)
    overlays: dict[str, Table] = {}
    for name in STAGES:
        overlay = table.pop(name, {})
        if not isinstance(overlay, dict):
            raise ConfigError(f"{path}: [{name}] is a table of settings for that stage")
        overlays[name] = overlay
    for checked in (table, *overlays.values()):  # a typo in the other stage's table counts, too
        _check_keys(checked, where=str(path), in_file=True)
    table = _merged(table, overlays[stage])
    config = _convert(table, where=str(path))
    blamed: dict[str, str] = {}
    for override in overrides:
        setting = _parse_override(override, stage=stage)
        table = _merged(table, setting)
        config = _convert(table, where=f"--set {override}")
        blamed |= dict.fromkeys((name for name, _ in leaves(setting)), f"--set {override}")
    for names, message in faults(config):
        where = next((blamed[name] for name in names if name in blamed), str(path))
        raise ConfigError(f"{where}: {message}")
    return config


def find(source: str) -> Path:
    """The file of a preset name, or the path itself."""
    path = Path(source)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(
            f"--config {source}: there is no such file; presets: {', '.join(presets())}"
        )
    preset = presets_folder() / f"{source}.toml"
    if preset.is_file():
        return preset
    near = difflib.get_close_matches(source, presets(), n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"there are {', '.join(presets())}, or name a .toml file"
    )
    raise ConfigError(f"--config {source}: there is no such preset; {hint}")


def presets() -> list[str]:
    """Names of the presets that come with usrgan."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def presets_folder() -> Path:
    """`configs/` of a checkout, or its copy inside the installed package."""
    packed = Path(__file__).parent / "presets"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "configs"


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML ({error}); correct that line") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_override(text: str, *, stage: Stage) -> Table:
    """The setting of one `--set`; none if its key names the other stage (`gan.optim.lr=2e-4`)."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or key in STAGES:
        raise ConfigError(f"--set {text}: write key=value, for example --set optim.lr=2e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    wanted, _, rest = key.partition(".")
    table: Table = {}
    put(table, rest if wanted in STAGES else key, parsed)
    _check_keys(table, where=f"--set {text}")
    return {} if wanted in STAGES and wanted != stage else table


def _merged(base: Table, over: Table) -> Table:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _check_keys(table: Table, *, where: str, in_file: bool = False) -> None:
    known = {name for name, _ in leaves(msgspec.to_builtins(Config()))}
    tables = {name.split(".")[0] for name in known if "." in name}
    for name, value in leaves(table):
        if name in known:
            continue
        if name in tables:
            raise ConfigError(f"{where}: {name} is a table, not {value!r}; write {name}.KEY")
        alike = [key for key in sorted(known) if key.split(".")[-1] == name.split(".")[-1]]
        near = difflib.get_close_matches(name, alike or known, n=1) or alike
        hint = f"did you mean {near[0]}?" if near else "see --print-config for all keys"
        if in_file:
            hint += f" (this is usrgan {__version__}, the file may be of another version)"
        raise ConfigError(f"{where}: unknown key {name}; {hint}")


def _convert(table: Table, *, where: str) -> Config:
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        if message.startswith("Invalid enum value"):
            message += f"; choose one of {', '.join(_choices(name))}"
        raise ConfigError(f"{where}: {name or 'configuration'}: {message}") from None


def _choices(name: str) -> list[str]:
    """The words that a setting may be."""
    *tables, last = name.split(".")
    struct: Any = Config
    for each in tables:
        struct = get_type_hints(struct)[each]
    return [str(word) for word in get_args(get_type_hints(struct)[last])]
