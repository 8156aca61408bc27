"""The user's cache folder: `~/.cache/usrgan`, or below `$XDG_CACHE_HOME`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def user_cache_path(name: str) -> Path | None:
    """Where it is; None for accounts without a home, as of a container's bare user id."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):
        # a relative one is to be ignored: https://specifications.freedesktop.org/basedir/latest
        return (named if named.is_absolute() else Path.home() / ".cache") / "usrgan" / name
    return None
