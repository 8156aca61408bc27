"""Writes the generated pages from the code: docs/cli/*.txt, docs/guide/config.md, the packages of architecture.md.

Run as `python -m tests.docs.regenerate`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import click

import pipeline.cli
import shards.cli
import trainer.cli
from trainer.config.write import settings_to_markdown

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ARCHITECTURE_PAGE = DOCS / "internals/architecture.md"
PACKAGES_BEGIN = "<!-- from the docstrings, by python -m tests.docs.regenerate -->"
PACKAGES_END = "<!-- end of the packages -->"
FOLDER = DOCS / "cli"
CONFIG_PAGE = DOCS / "guide/config.md"
CONFIG_INTRODUCTION = """\
# Configuration

`train-sr` takes its settings from a preset or a TOML file (`--config`) and from `--set key=value`, which
overrides both. `train-sr --print-config` prints the result with a comment above each setting. Write a setting
under a table `[psnr]` or `[gan]` (`--set gan.optim.lr=2e-4`) to set it for one stage alone.

The column *paper* names the place that gives the value; words in brackets are the paper's where it gives none.
The column *may change on resume* says whether a stopped run resumes with another value; elsewhere the run
folder refuses it. This page is generated from `trainer/config/schema.py`.

"""
WIDTH = 96
COMMANDS: dict[str, click.Command] = {
    "prep-shards": pipeline.cli.main,
    "inspect-shards": shards.cli.main,
    "inspect-shards ls": shards.cli.main.commands["ls"],
    "inspect-shards verify": shards.cli.main.commands["verify"],
    "train-sr": trainer.cli.train_main,
    "eval-sr": trainer.cli.eval_main,
    "upscale-sr": trainer.cli.upscale_main,
    "export-sr": trainer.cli.export_main,
    "bench-sr": trainer.cli.bench_main,
    "bench-sr prep": trainer.cli.bench_main.commands["prep"],
    "bench-sr data": trainer.cli.bench_main.commands["data"],
    "bench-sr train": trainer.cli.bench_main.commands["train"],
}


def help_text(name: str) -> str:
    """Return the output of `NAME --help` on a terminal of WIDTH columns."""
    settings = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = None
    for depth, part in enumerate(name.split()):  # a group hands its settings down
        command = COMMANDS[" ".join(name.split()[: depth + 1])]
        context = click.Context(command, context, part, **command.context_settings | settings)
    assert context is not None
    return context.get_help() + "\n"


def config_page() -> str:
    """Return the text of docs/guide/config.md."""
    return CONFIG_INTRODUCTION + settings_to_markdown()


def architecture_page() -> str:
    """Return the text of docs/internals/architecture.md with the docstrings of all packages."""
    head, begin, rest = ARCHITECTURE_PAGE.read_text().partition(PACKAGES_BEGIN)
    _, end, tail = rest.partition(PACKAGES_END)
    blocks = []
    for top in ("shards", "pipeline", "trainer"):
        for path in sorted((ROOT / top).rglob("__init__.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text()))
            name = path.parent.relative_to(ROOT).as_posix()
            blocks.append(f"`{name}/`\n\n```\n{docstring}\n```\n")
    return head + begin + "\n\n" + "\n".join(blocks) + "\n" + end + tail


if __name__ == "__main__":
    ARCHITECTURE_PAGE.write_text(architecture_page())
    CONFIG_PAGE.write_text(config_page())
    for command in COMMANDS:
        (FOLDER / f"{command.replace(' ', '-')}.txt").write_text(help_text(command))
