"""Upscaling of image files and folders.

upscale        tasks from inputs to outputs; skips finished images, continues after a bad one
tiling         one image in overlapping tiles without seams
picture_files  encoding of the result, with the colour profile
"""
