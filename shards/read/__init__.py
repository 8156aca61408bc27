"""Reading of data sets.

dataset        a folder or a URL, opened
split          pairs of one split, checked and decoded
blocks         neighbouring pairs in one read, checked against the index
byte_ranges    bytes from a file or a URL
shard_cache    whole shards of a URL in a local folder
raw_fast_path  uncompressed patches copied straight into a batch
webdataset     a ready `webdataset.WebDataset` for other training loops
"""
