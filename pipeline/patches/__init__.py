"""Patches of one photo.

extract  positions, detail, HR and LR patches
degrade  Real-ESRGAN's second-order degradation
spill    encoded patches of a photo on disk until they are packed
"""
