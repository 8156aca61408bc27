"""One call of `prep-shards`: the requested data set, and the terminal of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeline.execution.engines import Engine
from pipeline.options import Options
from shards.io.remote import Location


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `prep-shards`: the requested data set and how to make it."""

    sources: tuple[Location, ...]
    out: Path
    """Folder of the data set; for a URL, the local folder where it is made."""
    options: Options
    workers: int
    """Number of processes; 0 works in this process."""
    engine: Engine = "local"
    scheduler: str = ""
    """Address of a Dask or Ray cluster; empty: start `workers` processes on this machine."""
    exclude_like: tuple[Path, ...] = ()
    """Folders of test images that no photo may resemble."""
    lr_dirs: tuple[Path, ...] = ()
    """Folders of official LR images."""
    max_rejects: float = 0.05
    """Largest fraction of photos that may be rejected."""
    url: str = ""
    """Target URL of the data set; empty: it stays in `out`."""
    overwrite: bool = False
    repair: bool = False
    """Read every existing byte and make damaged shards again."""


class RunTerminal(msgspec.Struct, frozen=True):
    """How a run reports to its user, and how the user stops it."""

    say: Callable[[str], None]
    progress: Callable[..., object]
    """`progress(title, total=, unit=, done=)`: a context manager that yields `advance(steps, note)`."""
    stop_requested: Callable[[], bool]
