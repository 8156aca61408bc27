"""Batches of patch pairs from shards.

sampler      which sample stands at which place of which batch, as a pure function
patch_cache  decoded patches kept in memory or on the device
batches      from sample requests to a batch on the device
loader       the threads that read, plan and decode ahead of the step
"""
