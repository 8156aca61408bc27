"""Write docs/cli/*.txt from the commands' help; run as `python -m tests.docs.regenerate`."""

from __future__ import annotations

from pathlib import Path

import click

import pipeline.cli
import shards.cli
import trainer.cli

FOLDER = Path(__file__).parents[2] / "docs/cli"
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
}


def help_text(name: str) -> str:
    """What `NAME --help` prints on a terminal of WIDTH columns."""
    context = click.Context(
        COMMANDS[name],
        info_name=name,
        terminal_width=WIDTH,
        **COMMANDS[name].context_settings | {"max_content_width": WIDTH},
    )
    return COMMANDS[name].get_help(context) + "\n"


if __name__ == "__main__":
    for command in COMMANDS:
        (FOLDER / f"{command.replace(' ', '-')}.txt").write_text(help_text(command))
