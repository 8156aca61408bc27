"""Writes docs/cli/*.txt and docs/guide/config.md from the code; run as `python -m tests.docs.regenerate`."""

from __future__ import annotations

from pathlib import Path

import click

import pipeline.cli
import shards.cli
import trainer.cli
from trainer.config.write import settings_to_markdown

DOCS = Path(__file__).parents[2] / "docs"
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
    """What `NAME --help` prints on a terminal of WIDTH columns."""
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


if __name__ == "__main__":
    CONFIG_PAGE.write_text(config_page())
    for command in COMMANDS:
        (FOLDER / f"{command.replace(' ', '-')}.txt").write_text(help_text(command))
