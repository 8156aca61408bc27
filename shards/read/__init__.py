"""Reading of data sets.

dataset        a data set in a folder or at a URL
split          pairs of one split, checked and decoded
blocks         consecutive pairs, checked against the index
byte_ranges    byte ranges of shards in a folder or at a URL
shard_cache    local copies of shards at a URL
raw_fast_path  uncompressed patches, read directly into a batch
webdataset     a ready `webdataset.WebDataset` for other training loops
"""
