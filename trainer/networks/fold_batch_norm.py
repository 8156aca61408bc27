"""Batch normalisation folded into the convolution before it, which is exact once training is over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

EPSILON = 1e-5
"""Added to the variance; the default of `nn.BatchNorm2d`."""


def fold_batch_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without batch normalisation that computes the same function in evaluation mode.

    Each `normX` follows the `convX` beside it, as in every network here:
    norm(conv(x)) = g (W x + b - mean) / sqrt(var + eps) + beta is one convolution with weights
    W g / sqrt(var + eps). Computed in float64 and rounded once. Other weights stay unchanged.
    """
    folded = {name: value for name, value in weights.items() if not _belongs_to_norm(name)}
    for name, variance in weights.items():
        norm, _, field = name.rpartition(".")
        if field != "running_var":
            continue
        parent, _, last = norm.rpartition(".")
        conv = ".".join(filter(None, (parent, last.replace("norm", "conv", 1))))
        gain = weights[f"{norm}.weight"].double() / (variance.double() + EPSILON).sqrt()
        weight, bias = weights[f"{conv}.weight"], weights[f"{conv}.bias"]
        shifted = bias.double() - weights[f"{norm}.running_mean"].double()
        folded[f"{conv}.weight"] = (weight.double() * gain[:, None, None, None]).to(weight.dtype)
        folded[f"{conv}.bias"] = (shifted * gain + weights[f"{norm}.bias"].double()).to(bias.dtype)
    return folded


def _belongs_to_norm(name: str) -> bool:
    return name.split(".")[-2].startswith("norm")
