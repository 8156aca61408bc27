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


if __name__ == "__main__":
    for command in COMMANDS:
        (FOLDER / f"{command.replace(' ', '-')}.txt").write_text(help_text(command))
