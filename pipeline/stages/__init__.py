"""Stages of `prep-shards`, in order, and what they share.

prepare        the whole run
cut            extraction stage: photos to spills
plan           split, order and shards of all samples
pack           packing stage: spills to shards
output_folder  state and build specification of the output folder
tasks          tasks on one chunk, photo or shard, for any engine
report         manifest, rejects and result of a run
repair         checks and repair of an existing data set
upload         upload of a data set to a URL
"""
