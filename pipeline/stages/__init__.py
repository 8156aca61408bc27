"""Stages of `prep-shards`, in order.

prepare        the whole run
cut            photos to spills
plan           order of all samples
pack           spills to shards
output_folder  files beside the shards
tasks          the work of one photo or shard, for any engine
report         result of a run
repair         damaged shards made again
upload         a data set sent to a URL
"""
