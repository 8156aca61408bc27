"""What all commands share at the terminal: common options, one-line errors, progress, results.

Results go to stdout, everything else to stderr, so that `--json` output can be piped.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from shards import __version__
from shards.errors import Stopped, UsrganError

LOG_EVERY_SECONDS = 10.0
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Command(click.Command):
    """A command whose errors are one line and an exit code."""

    example = ""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        debug = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        *params, help_option = super().get_params(ctx)
        return [*params, debug, help_option]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(self.example, formatter)

    def invoke(self, ctx: click.Context) -> object:
        with reporting_errors(debug=ctx.params.pop("debug")):
            return super().invoke(ctx)


class _Group(click.Group):
    """A command with subcommands, and an example under its help."""

    example = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(self.example, formatter)


def _write_example(example: str, formatter: click.HelpFormatter) -> None:
    """Lines as they are typed, never wrapped."""
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def group_class(example: str) -> type[click.Group]:
    """The `cls=` of a click group: adds an example under its help."""
    return type("Group", (_Group,), {"example": example})


def command_class(example: str) -> type[click.Command]:
    """The `cls=` of a click command: adds `--debug` and, under its help, an example."""
    return type("Command", (_Command,), {"example": example})


def command(
    name: str, *, example: str, any_options: bool = False
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function one of usrgan's commands, with `--version`, `--debug` and an example.

    With `any_options` it takes options that it does not know, as arguments.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        versioned = click.version_option(__version__, prog_name=name)(function)
        settings = SETTINGS | {"ignore_unknown_options": any_options}
        return click.command(name, cls=command_class(example), context_settings=settings)(versioned)

    return wrap


@contextlib.contextmanager
def reporting_errors(*, debug: bool) -> Iterator[None]:
    """Print an error as one line and leave with its exit code."""
    try:
        yield
    except click.ClickException:
        raise
    except UsrganError as error:
        fail(str(error), code=error.exit_code, debug=debug)
    except KeyboardInterrupt:
        fail("stopped; run the same command again to go on", code=Stopped.exit_code, debug=debug)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        kind = type(error).__name__
        message = " ".join(str(error).split()) or "no message"
        fail(f"{kind}: {message} (a bug: --debug shows where)", code=1, debug=debug)


def fail(message: str, *, code: int, debug: bool = False) -> NoReturn:
    """Print one line and end the process with `code`."""
    if debug:
        err.print(traceback.format_exc(), markup=False, style="dim")
    head = "[yellow]stopped:[/]" if code == Stopped.exit_code else "[red]error:[/]"
    err.print(head, end=" ")
    err.print(printable(message), markup=False)
    sys.exit(code)


def printable(text: str) -> str:
    """`text` on one line, with control and undecodable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode()
        for c in text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def say(message: str) -> None:
    """Tell the person something, on stderr; with a time stamp where no terminal shows it."""
    stamp = "" if err.is_terminal else time.strftime("%H:%M:%S ")
    err.print(stamp + printable(message), markup=False)


def warn(message: str) -> None:
    """Tell the person about something that they may want to change."""
    err.print("[yellow]warning:[/]", end=" ")
    err.print(printable(message), markup=False)


def print_json(result: object) -> None:
    """Print the machine-readable result of a command on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


Advance = Callable[[int, str], None]
"""`advance(steps, note)`: so many units are done; the note stands behind the bar."""


@contextlib.contextmanager
def progress(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show a bar with rate and time left on a terminal, and time-stamped lines off it.

    `done` units were there before and count for the bar, not for the rate.
    """
    if err.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,}/{task.total:,}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=err,
            expand=True,
        ) as bars:
            task = bars.add_task(title, total=total, completed=done, rate="", note="")
            started = time.monotonic()

            def advance(steps: int, note: str = "") -> None:
                bars.advance(task, steps)
                rate = (bars.tasks[0].completed - done) / max(time.monotonic() - started, 1e-3)
                bars.update(task, rate=f"{rate:,.1f} {unit}/s")
                if note:  # the last one stays to be read
                    bars.update(task, note=printable(note))

            yield advance
    else:
        yield _logged_progress(title, total=total, unit=unit, before=done)


def _logged_progress(title: str, *, total: int, unit: str, before: int) -> Advance:
    started = last = time.monotonic()
    done = before

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if done < total and now - last < LOG_EVERY_SECONDS:
            return
        last = now
        rate = (done - before) / max(now - started, 1e-3)
        left = (total - done) / rate if rate > 0 else 0.0
        say(
            f"{title}: {done:,}/{total:,} {unit} ({rate:,.1f}/s, {left:.0f} s left) {note}".rstrip()
        )

    return advance


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a question that the work asks between two steps.

    The handler sets a flag and nothing else. A second signal ends the process at once.
    """
    asked = False

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = True

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
