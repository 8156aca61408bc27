"""Files of weights, in and out.

safetensors_io  safetensors with a digest of their content
generators      a generator ready to upscale, a blend of two, weights to start a stage from
detect          architecture and scale from names and shapes of weights
pth_import      state dicts that other programs wrote
"""
