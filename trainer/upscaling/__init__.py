"""Upscaling of picture files and folders.

upscale        inputs to outputs; skips finished pictures, continues after a bad one
tiling         one picture in overlapping tiles without seams
picture_files  encoding of the result, with the colour profile
"""
