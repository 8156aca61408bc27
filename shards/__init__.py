"""The data set contract between `pipeline`, which writes shards, and `trainer`, which reads them.

format/    files of a data set: tar, PNG, index, manifest
images/    strict decoding of photos, headers, colour profiles, antialiased bicubic
read/      data sets in a folder or at a URL: checked, decoded pairs
io/        atomic file writes, URLs, compiled C, the user's cache
terminal/  console and progress, shared by all commands
writer     writes shards and data sets
verify     checks every byte against the manifest
cli        `inspect-shards`
errors     the error tree and the exit codes
messages   counts and durations as messages show them
version    the version of usrgan
"""

from typing import Any

from shards.version import __version__ as __version__


def __getattr__(name: str) -> Any:  # noqa: ANN401
    match name:
        case "open_dataset":
            from shards.read import dataset

            return dataset.open_dataset
        case "webdataset_pipeline":  # imports torch
            from shards.read import webdataset

            return webdataset.webdataset_pipeline
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
