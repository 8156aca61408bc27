"""`bench-sr`: the cost of the work beside its floor and beside a peer, in one run.

prep     the offline stage; floor, basicsr: its least possible work, and BasicSR's scripts
process  wall time, CPU time and memory of a command with all its descendants
data     the reader; reading: the readers compared in one process
train    the training step; implementations: accelerations by name; result: its figures as JSON and text
machine  rates of the device; flop: arithmetic of a step; work: operations and memory
peer     BasicSR's training step; agree: both compute the same; rounds: interleaved timing
wait     share of its time that a step waits for data
"""
