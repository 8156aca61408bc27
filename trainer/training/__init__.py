"""One training step.

state           networks, optimisers, EMA and position of a stage
objectives      gradients of each stage
step            a step of all ranks, taken whole or not at all
optim           Adam, learning-rate schedules, EMA
flat_buffers    many small tensors as views of one
nonfinite       losses that are not finite: skip, roll back, stop
diagnostics     gradient shares, gradient norms, singular values
speed_settings  `speed.*` decided for a device
acceleration    fused forms and compiled blocks, put on networks from outside
cuda_graph      a step as one CUDA graph
"""
