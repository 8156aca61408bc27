"""Patches of one photo.

extract  positions, detail, HR and LR patches
degrade  Real-ESRGAN's second-order degradation
spill    scratch files with encoded patches
"""
