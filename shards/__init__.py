"""Shards: the contract between `pipeline`, which writes them, and `trainer`, which reads them.

format/    the files of a data set: tar, PNG, index, manifest
images/    strict decoding of photos, sizes, colour profiles, antialiased bicubic
read/      data sets from disk or a URL: checked, decoded pairs
io/        writing of files, URLs, folders, compiled C, the user's cache
terminal/  console and progress, shared by all commands
writer     shards and data sets to disk
verify     every byte against the manifest
cli        `inspect-shards`
errors     the error tree and the exit codes
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    match name:
        case "open_dataset":
            from shards.read.dataset import open_dataset

            return open_dataset
        case "webdataset_pipeline":  # imports torch
            from shards.read.webdataset import webdataset_pipeline

            return webdataset_pipeline
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
