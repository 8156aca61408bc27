"""Triton kernels of a training step on a GPU, launched by `kernels.dense_block_launches` and `kernels.bias_leaky_relu`.

Activation buffers are channels last: a matrix [images * height * width, channels] whose rows are pixels and whose
slices of columns are maps; PITCH is its number of columns. Arguments in capitals are compile-time constants.

convolve          convolutions between slices of an activation buffer, forward and backward
norms             batch normalisation of a slice
weights           the weights of a block gathered into one square, and their gradients spread back
bias_leaky_relu   bias, LeakyReLU and pixel shuffle
"""
