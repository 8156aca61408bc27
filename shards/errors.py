"""The error tree of usrgan, with the exit code of each error.

    UsrganError                  1  the work failed
    ├── UsageError               2  a wrong option, configuration or folder; no data were changed
    │   └── ConfigError          2  a key or value of a TOML configuration
    ├── DamagedData              1  stored bytes disagree with their index, checksum or manifest
    ├── TooManyRejects           1  more photos were rejected than --max-rejects allows
    ├── WriteFailed              1  a file could not be written (disk full, read-only, ...)
    └── Stopped                 75  SIGTERM or SIGINT, after saving; the same command resumes

Every message is one line: the file or option, what is wrong, the fix.
"""

from __future__ import annotations


class UsrganError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class UsageError(UsrganError):
    """The command cannot start as requested; no data were changed."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown, or its value is invalid."""


class DamagedData(UsrganError):
    """Stored bytes disagree with their index, checksum or manifest."""


class TooManyRejects(UsrganError):
    """More photos were rejected than the run allows."""


class WriteFailed(UsrganError):
    """The operating system or the store refused a write; the existing file is unchanged."""


class Stopped(UsrganError):
    """The run stopped on request after saving; the same command resumes it."""

    exit_code = 75


def remedy(location: str) -> str:
    """Return the advice for a damaged data set: a folder can be repaired, a URL cannot."""
    if "://" in location:
        return "make it again with prep-shards --overwrite, or repair a local copy and upload that"
    return "run the prep-shards command that made it with --repair"
