"""Terminal functions of all commands: shared options, one-line errors, results.

Results go to stdout and everything else to stderr, so that `--json` output can be piped.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.text import Text

from shards.errors import Stopped, UsageError, UsrganError
from shards.version import __version__

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
ARGUMENTS_KEY = "usrgan.given"
"""Key in click's context for the arguments as typed."""
err = Console(stderr=True, highlight=False, soft_wrap=True)


class FilePath(click.Path):
    """A local path: not empty (an unset variable would mean the current folder) and not a URL."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  click's signature
        """Return the value as a `Path`."""
        if not str(value):
            self.fail("the path is empty; check that its variable is set", param, ctx)
        if "://" in str(value):
            self.fail(f"{value} is a URL; name a local path here", param, ctx)
        return super().convert(value, param, ctx)


class FolderOrUrl(FilePath):
    """A local path or the URL of a store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  click's signature
        """Return a path as a `Path`, a URL as text."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class _Command(click.Command):
    """A command that reports each error as one line and an exit code."""

    example = ""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401  click's signature
    ) -> click.Context:  # fmt: skip
        """Parse the arguments; report wrong usage like any other error."""
        for stream in (sys.stdout, sys.stderr):  # escape characters that the terminal cannot show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        with _report_usage(info_name):
            arguments = tuple(args)
            context = super().make_context(info_name, args, parent, **extra)
            context.meta[ARGUMENTS_KEY] = arguments
            return context

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        debug = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        *params, help_option = super().get_params(ctx)
        return [*params, debug, help_option]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_example(self.example, formatter)

    def invoke(self, ctx: click.Context) -> object:
        with report_errors(debug=ctx.params.pop("debug")):
            return super().invoke(ctx)


class _Group(click.Group):
    """A command with subcommands and an example in its help."""

    example = ""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401  click's signature
    ) -> click.Context:  # fmt: skip
        """Parse the arguments; report wrong usage like any other error."""
        with _report_usage(info_name):
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Report an unknown command like any other error."""
        with _report_usage(ctx.command_path):
            return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_example(self.example, formatter)


@contextlib.contextmanager
def _report_usage(name: str | None) -> Iterator[None]:
    """Print click's usage error as one line and exit with the code of wrong usage."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        problem = " ".join(error.format_message().split()).rstrip(".")
        exit_with_error(f"{problem}; see {path} --help", code=UsageError.exit_code)


def _format_example(example: str, formatter: click.HelpFormatter) -> None:
    """Write the example below the help, without wrapping its lines."""
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def group_class(example: str) -> type[click.Group]:
    """Return the `cls=` of a click group with an example in its help."""
    return type("Group", (_Group,), {"example": example})


def command_class(example: str) -> type[click.Command]:
    """Return the `cls=` of a click command with `--debug` and an example in its help."""
    return type("Command", (_Command,), {"example": example})


def command(
    name: str, *, example: str, any_options: bool = False
) -> Callable[[Callable[..., None]], click.Command]:
    """Turn a function into a command of usrgan with `--version`, `--debug` and an example.

    With `any_options`, unknown options are passed on as arguments.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        versioned = click.version_option(__version__, prog_name=name)(function)
        settings = SETTINGS | {"ignore_unknown_options": any_options}
        return click.command(name, cls=command_class(example), context_settings=settings)(versioned)

    return wrap


@contextlib.contextmanager
def report_errors(*, debug: bool) -> Iterator[None]:
    """Print an error as one line and exit with its code."""
    try:
        yield
    except click.ClickException:
        raise
    except UsrganError as error:
        exit_with_error(str(error), code=error.exit_code, debug=debug)
    except KeyboardInterrupt:
        exit_with_error("run the same command again to resume", code=Stopped.exit_code, debug=debug)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # caused by the machine, not by a bug
        name = error.filename if isinstance(error.filename, str) else "the output"
        exit_with_error(f"{name}: {error.strerror or error}", code=1, debug=debug)
    except Exception as error:
        kind = type(error).__name__
        message = " ".join(str(error).split()) or "no message"
        exit_with_error(f"{kind}: {message} (a bug: --debug shows where)", code=1, debug=debug)


def exit_with_error(message: str, *, code: int, debug: bool = False) -> NoReturn:
    """Print one line and end the process with `code`."""
    if debug:
        err.print(traceback.format_exc(), markup=False, style="dim")
    print_error(message, stopped=code == Stopped.exit_code)
    sys.exit(code)


def print_error(message: str, *, stopped: bool = False) -> None:
    """Print one line that says what went wrong."""
    head = ("stopped:", "yellow") if stopped else ("error:", "red")
    err.print(Text.assemble(head, " ", printable(message)))


def printable(text: str) -> str:
    """Return `text` on one line, with control and undecodable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode()
        for c in text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def say(message: str) -> None:
    """Print a line on stderr, with a time stamp if stderr is not a terminal."""
    stamp = "" if err.is_terminal else time.strftime("%H:%M:%S ")
    err.print(stamp + printable(message), markup=False)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    err.print(Text.assemble(("warning:", "yellow"), " ", printable(message)))


def print_json(result: object) -> None:
    """Print the machine-readable result of a command on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


@contextlib.contextmanager
def stop_requests(
    *, also: tuple[signal.Signals, ...] = (), insist: bool = True
) -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM, SIGINT and the signals in `also`; yield a function that says whether one arrived.

    The handler only sets a flag, which the caller checks between two steps. With `insist`, a second
    SIGTERM or SIGINT kills the process at once.
    """
    requested = False

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        if requested and insist and number not in also:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requested = True

    numbers = (signal.SIGTERM, signal.SIGINT, *also)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
