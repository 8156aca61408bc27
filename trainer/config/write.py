"""A configuration as commented TOML that `--config` reads, and every setting as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Literal, get_args, get_origin

import tomli_w

from shards.version import __version__
from trainer.config.policy import Condition
from trainer.config.schema import Config, Stage
from trainer.config.settings import SETTINGS, Setting, differences, flatten

COMMENT_WIDTH = 100


def config_to_toml(configs: Mapping[Stage, Config]) -> str:
    """Return one TOML text for one or both stages.

    Shared settings come first, then a table of each stage with the settings in which the stages differ. The first
    line names the version; a comment above each setting describes it.
    """
    first, *others = configs.values()
    apart = {name for other in others for name in differences(first, other)}
    blocks = [f"# usrgan {__version__}\n"]
    shared = {name: value for name, value in flatten(first).items() if name not in apart}
    blocks += _toml_tables(shared, prefix="")
    for stage, config in configs.items():
        own = {name: value for name, value in flatten(config).items() if name in apart}
        blocks += _toml_tables(own, prefix=stage)
    return "\n".join(blocks)


def settings_to_markdown() -> str:
    """Return the reference of all settings: a Markdown table for each table of the configuration."""
    lines: list[str] = []
    for table, settings in groupby(SETTINGS.values(), key=lambda each: _table_of(each.name)):
        lines += [
            f"## {f'`[{table}]`' if table else 'Top level'}",
            "",
            "| key | type | default | meaning | paper | may change on resume |",
            "|---|---|---|---|---|---|",
            *(_markdown_row(setting) for setting in settings),
            "",
        ]
    return "\n".join(lines)


def _toml_tables(values: Mapping[str, Any], *, prefix: str) -> Iterator[str]:
    """Yield the text of each TOML table that holds some of the settings."""
    for table, names in groupby(values, key=_table_of):
        full = ".".join(part for part in (prefix, table) if part)
        lines = [f"[{full}]"] if full else []
        for name in names:
            comment = textwrap.wrap(SETTINGS[name].meta.description or "", COMMENT_WIDTH - 2)
            lines += [f"# {line}" for line in comment]
            lines.append(tomli_w.dumps({name.rpartition(".")[2]: values[name]}).rstrip("\n"))
        yield "\n".join(lines) + "\n"


def _table_of(name: str) -> str:
    return name.rpartition(".")[0]


def _markdown_row(setting: Setting) -> str:
    policy = setting.policy
    paper = policy.paper or (f"({policy.unsaid})" if policy.unsaid else "")
    rule = policy.may_change
    resume = rule.text if isinstance(rule, Condition) else ("yes" if rule else "no")
    default = tomli_w.dumps({"x": setting.default}).removeprefix("x = ").strip()
    cells = (
        f"`{setting.name}`",
        _describe_type(setting),
        f"`{default}`",
        setting.meta.description or "",
        paper,
        resume,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _describe_type(setting: Setting) -> str:
    """Return the type in the words of a configuration file, with its bounds."""
    if get_origin(setting.type) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(setting.type))
    if get_origin(setting.type) is tuple:
        return "list of numbers"
    name = {int: "integer", float: "number", bool: "true or false", str: "text"}[setting.type]
    meta = setting.meta
    signs = (("> ", meta.gt), ("≥ ", meta.ge), ("< ", meta.lt))
    bounds = [f"{sign}{bound:g}" for sign, bound in signs if bound is not None]
    return ", ".join([name, *bounds])
