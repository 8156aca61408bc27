"""Batch normalisation as part of the convolution before it, which it is once training is over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

EPSILON = 1e-5
"""What torch's batch normalisation adds to a variance unless told otherwise."""


def fold_batch_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without batch normalisation, of the same function in evaluation mode.

    Each `normX` is taken to follow the `convX` beside it, as in every network here:
    norm(conv(x)) = g (W x + b - mean) / sqrt(var + eps) + beta is one convolution with weights
    W g / sqrt(var + eps). Computed in float64 and rounded once. What has no batch normalisation comes
    back as it is.
    """
    folded = {name: value for name, value in weights.items() if not _is_norm(name)}
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


def _is_norm(name: str) -> bool:
    return name.split(".")[-2].startswith("norm")
