"""What is kept for a user between runs, in `~/.cache/usrgan` or below `$XDG_CACHE_HOME`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def kept(name: str) -> Path | None:
    """Where it is; None for accounts without a home, as of a container's bare user id."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "usrgan", name)
    return None
