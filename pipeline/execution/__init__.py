"""Parallel work.

tasks    the work of one photo or shard, for any engine
pool     local worker processes that may crash
engines  local, Dask and Ray
"""
