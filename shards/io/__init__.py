"""Access to disks and networks.

atomic     all file writes: temporary file, fsync, rename
remote     folders at URLs
compile_c  C kernels, compiled on first use
cache_dir  the user's cache folder
"""
