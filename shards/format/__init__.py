"""The files of a data set, format 1 (docs/internals/shard-format.md).

tar       strict USTAR: the bytes of a shard, written and parsed
png       the fast PNG form of patches
unfilter  inverse PNG filters, in C or numpy
codec     stored pixels: PNG, WebP, raw
checksum  CRC-32 of many byte strings
index     positions of samples: `.tar.idx` and `index/*.npz`
manifest  description of a data set: `manifest.json`
"""
