"""Numbers that generator, discriminators and kernels share."""

SLOPE = 0.2
"""Negative slope of every LeakyReLU (paper §3.2)."""
RESIDUAL = 0.2
"""Factor of a residual branch before it is added (ESRGAN §3.1)."""
