"""Several processes (ranks) that train together.

process_group   who this process is, and collective operations
rendezvous      the shared store: how ranks meet, report readiness and failures
heartbeat       detects a rank that died or hangs
launcher        `--gpus N`: starts one process per GPU
"""
