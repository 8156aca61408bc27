"""`bench-sr`: what the work costs, beside the least that it could cost and beside a peer's way, in one run.

prep       the offline stage
data       the reader
reading    ways of reading one beside the other, in one process
fake       the real reader before steps that only wait
train      the training step: machine (its rates), flop (arithmetic), peer (BasicSR's way), agree (same work),
           rounds (taking turns), parts, work (operations, memory), wait (for data), result
process    a command and all its descendants: wall time, CPU time, memory of the largest
floor      decode, resize and encode once, and nothing else
basicsr    the same patches made as BasicSR's scripts do
"""
