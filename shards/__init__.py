"""Shards: the contract between `pipeline`, which writes them, and `trainer`, which reads them.

errors    the error tree and the exit codes
files     the one place where files are written
tar       strict USTAR: what a shard may look like, byte for byte
png       the fast PNG form of the patches
manifest  what a data set promises about itself (`manifest.json`)
index     where each sample of a shard lies (`.tar.idx`, `index/*.npz`)
writer    shards and data sets to disk
reader    data sets from disk: CRC-checked, decoded pairs
photos    strict decoding of image files
resize    antialiased bicubic by 8-bit PIL
console   what all commands share at the terminal
cli       `inspect-shards`
"""

__version__ = "0.1.0"
