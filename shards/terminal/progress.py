"""Progress of long work: a bar on a terminal, time-stamped lines otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from shards.messages import format_duration
from shards.terminal.console import err, printable, say

LOG_EVERY_SECONDS = 10.0
Advance = Callable[[int, str], None]
"""`advance(units, note)`: units finished since the last call, possibly 0; the bar shows the note."""


@contextlib.contextmanager
def progress(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show a bar with rate and time left on a terminal, time-stamped lines otherwise.

    `done` units were finished before; they count for the bar, not for the rate.
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
                if note:  # keep the last note visible
                    bars.update(task, note=printable(note))

            yield advance
    else:
        yield _log_progress(title, total=total, unit=unit, before=done)


def _log_progress(title: str, *, total: int, unit: str, before: int) -> Advance:
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
        left = f", {format_duration((total - done) / rate)} left" if rate > 0 else ""
        say(f"{title}: {done:,}/{total:,} {unit} ({rate:,.1f}/s{left}) {note}".rstrip())

    return advance
