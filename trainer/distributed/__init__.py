"""Several processes (ranks) that train together.

process_group   who this process is, and collective operations
rendezvous      the shared store: how ranks meet, report readiness and failures
heartbeat       detects a rank that died or hangs
group_lifetime  opens torch's process group, and ends all ranks at the first error
launcher        `--gpus N`: starts one process per GPU
sync_batchnorm  batch normalisation over the patches of all ranks
"""
