"""The error tree of usrgan, with the exit code of each error.

    UsrganError                  1  the work failed
    ├── UsageError               2  a wrong option, configuration or folder; all data as before
    │   └── ConfigError          2  a key or value of a TOML configuration
    ├── DamagedData              1  bytes that are not what the index or the manifest promises
    ├── TooManyRejects           1  more photos were refused than --max-rejects allows
    ├── WriteFailed              1  a file could not be written (disk full, read-only, ...)
    └── Stopped                 75  SIGTERM or SIGINT, after saving: run the same command again to resume

Every message is one line: the file or option first, then what is wrong, then the fix.
"""

from __future__ import annotations


class UsrganError(Exception):
    """Base of every error that a person can do something about."""

    exit_code = 1


class UsageError(UsrganError):
    """The command cannot start as asked; all data are as before."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown, or its value cannot be."""


class DamagedData(UsrganError):
    """Stored bytes disagree with their index, checksum or manifest."""


class TooManyRejects(UsrganError):
    """More photos were refused than the run allows."""


class WriteFailed(UsrganError):
    """The operating system refused a write; what was there before is untouched."""


class Stopped(UsrganError):
    """Stopped on request after saving; the same command resumes."""

    exit_code = 75


def remedy(place: str) -> str:
    """Return the advice for a damaged data set: a folder can be repaired, a URL cannot."""
    if "://" in place:
        return "make it again with prep-shards --overwrite, or repair a local copy and send that"
    return "run the prep-shards command that made it with --repair"
