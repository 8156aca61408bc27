"""GPU kernels and their autograd functions. They know tensors and numbers, and import nothing of the networks.

dense_block              a chain of dense blocks and its gradient as one autograd function
dense_block_launches     the kernel launches of one block, forward and backward
bias_leaky_relu          bias, LeakyReLU and pixel shuffle in one pass
autograd                 guards for hand-written backward passes
toolchain                whether this machine can compile the kernels
triton/                  the kernels themselves
"""
