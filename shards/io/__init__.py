"""Everything that touches disks and networks.

atomic     the one place that writes files: temporary, fsync, rename
remote     folders that are URLs
compile_c  C compiled on first use
cache_dir  the user's cache folder
"""
