"""Parallel work.

pool     local worker processes that may crash
engines  local, Dask and Ray
"""
