"""`bench-sr`: cost of the work beside its floor and beside a peer, measured in one run.

prep            the offline stage; measured commands
prep_baselines  floor and peer of prep: decode, resize and encode once; BasicSR's scripts
data            the reader beside webdataset; starting and resuming
data_wait       share of a training loop that waits for data
train           the training step; flops (its arithmetic), peer (BasicSR's step), equivalence (same work or no ratio),
                timing (interleaved rounds, statistics), implementations (settings by name)
"""
