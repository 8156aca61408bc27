"""Shards: the contract between `pipeline`, which writes them, and `trainer`, which reads them.

errors    the error tree and the exit codes
files     the one place where files are written
tar       strict USTAR: what a shard may look like, byte for byte
png       the fast PNG form of the patches
unfilter  PNG's filters undone
native    C compiled where it is used
home      what is kept for a user between runs
manifest  what a data set promises about itself (`manifest.json`)
index     where each sample of a shard lies (`.tar.idx`, `index/*.npz`)
writer    shards and data sets to disk
reader    data sets from disk or a URL: CRC-checked, decoded pairs
pieces    consecutive pairs as they lie in a shard, checked against its index
ranges    where its bytes come from
fetched   whole shards of a URL in a local folder
photos    strict decoding of image files
headers   what an image file says of itself
tiff      the first directory of a TIFF or Exif block
resize    antialiased bicubic by 8-bit PIL
colour    colour profiles to sRGB
codec     how pixels are stored: PNG, WebP, raw
storage   folders that are URLs
verify    every byte against the manifest
console   what all commands share at the terminal
progress  a bar on a terminal, lines off it
cli       `inspect-shards`

`shards.webdataset_pipeline(...)` hands other people's loops a ready `webdataset.WebDataset`.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "webdataset_pipeline":  # brings torch along, so only for those who ask
        from shards.webdataset import webdataset_pipeline

        return webdataset_pipeline
    raise AttributeError(name)
