"""One call of `prep-shards`: what is asked for, and how the run talks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeline.execution.engines import Engine
from pipeline.options import Options
from shards.io.remote import Location


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `prep-shards`: what to make, and how the work is done."""

    sources: tuple[Location, ...]
    out: Path
    """Folder of the data set; where it is sent to a URL, the folder that it is made in."""
    options: Options
    workers: int
    """Processes; 0 works in this one."""
    engine: Engine = "local"
    scheduler: str = ""
    """Address of a Dask or Ray cluster; without one, `workers` processes of this machine are started."""
    exclude_like: tuple[Path, ...] = ()
    """Folders of test pictures that no photo may resemble."""
    lr_dirs: tuple[Path, ...] = ()
    """Folders of official LR images."""
    max_rejects: float = 0.05
    """Share of the photos that may be refused."""
    url: str = ""
    """Where the data set is sent, if it is not to stay in `out`."""
    overwrite: bool = False
    repair: bool = False
    """Read every byte that is there, and make again what is damaged."""


class RunTerminal(msgspec.Struct, frozen=True):
    """How a run reports to its user, and how the user stops it."""

    say: Callable[[str], None]
    progress: Callable[..., object]
    """`progress(title, total=, unit=, done=)`: a context that gives an `advance(steps, note)`."""
    stopping: Callable[[], bool]
