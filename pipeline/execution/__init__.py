"""Parallel execution of tasks.

pool     local worker processes that may crash
engines  local processes, Dask and Ray
"""
