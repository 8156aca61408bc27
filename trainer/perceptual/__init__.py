"""Perceptual distances between images, for evaluation and differentiable for training.

metric  the metric of an image pair and the weights of its feature network
lpips   LPIPS 0.1 by AlexNet or VGG-16
dists   DISTS by VGG-16
"""
