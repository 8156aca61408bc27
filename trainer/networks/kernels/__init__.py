"""Triton kernels of a training step on a GPU, which `networks.fused` and `networks.activate` launch.

Pictures are channels last: a matrix [pictures * height * width, channels] whose rows are pixels and whose slices of
columns are maps; a PITCH is its width. Arguments in capitals are compiled in.
"""
