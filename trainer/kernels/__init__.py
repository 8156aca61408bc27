"""GPU kernels and their autograd functions. They know tensors and numbers, and import nothing of the networks."""
