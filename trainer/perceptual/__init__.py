"""Perceptual distances between images: metrics of an evaluation, and differentiable.

metric  weights of the feature network, and the metric of one image pair
lpips   LPIPS 0.1 by AlexNet or VGG-16
dists   DISTS by VGG-16
"""
