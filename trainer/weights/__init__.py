"""Reading and writing of weights files.

safetensors_io  safetensors with a digest of their content
generators      generators for inference, blends of two, initial weights of a stage
detect          architecture and scale from names and shapes of weights
pth_import      state dicts of other programs
"""
