"""The user's cache folder: `~/.cache/usrgan`, or below `$XDG_CACHE_HOME`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def user_cache_path(name: str) -> Path | None:
    """Return the path of `name` in the user's cache; None for an account without a home folder.

    A container that runs as a bare user id has no home folder.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):
        # a relative path must be ignored: https://specifications.freedesktop.org/basedir/latest
        base = configured if configured.is_absolute() else Path.home() / ".cache"
        return base / "usrgan" / name
    return None
