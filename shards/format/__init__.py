"""The files of a data set, format 1 (docs/internals/shard-format.md).

tar       strict USTAR: bytes of a shard, written and parsed
png       the fast PNG form of patches
unfilter  PNG filters undone, in C or numpy
codec     stored pixels: PNG, WebP, raw
checksum  CRC-32 of patches without a second pass
index     place of each sample: `.tar.idx` and `index/*.npz`
manifest  promises of a data set: `manifest.json`
"""
