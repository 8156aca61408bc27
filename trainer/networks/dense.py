"""The dense block computed input by input, for hardware that is slow with few output channels.

As written in `rrdb`, each of the five convolutions reads everything before it and makes 32 channels
(64 the last). The same sums in another order ("push"): each input, as soon as it is there, is convolved
once with the merged weights of all its consumers, 192 channels for the first, and adds its share to
what each of them has so far. There are no concatenations, and products have 64 to 192 columns instead
of 32. "hybrid" does so forward and backward, and gets all weight gradients from one convolution of the
two 192-channel buffers that are at hand anyway; a triangle of it, 28 %, is thrown away.

Shares are added in float32; in half precision each share is rounded once, where the plain form rounds
the sum once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Form = Literal["plain", "push", "hybrid", "fused"]
Maps = Float[Tensor, "b c h w"]
SLOPE = 0.2
"""Of every LeakyReLU (paper §3.2)."""
RESIDUAL = 0.2
"""What a residual branch is multiplied with before it is added."""


def dense_block(
    x: Maps, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module], *, form: Form
) -> Maps:
    """A block of the given form; "hybrid" is for blocks without normalisation, others are pushed."""
    weights = [conv.weight for conv in convs]
    biases = [conv.bias for conv in convs]
    half = torch.is_autocast_enabled(x.device.type)
    plain = all(isinstance(norm, nn.Identity) for norm in norms)
    dtype = torch.get_autocast_dtype(x.device.type) if half else x.dtype
    given = x.to(dtype), [weight.to(dtype) for weight in weights]
    with torch.autocast(x.device.type, enabled=False):
        if form == "hybrid" and plain:
            branch: Tensor = _Hybrid.apply(given[0], *given[1], *biases)  # type: ignore[no-untyped-call]  # as torch has it
        else:
            branch = _pushed(*given, [bias for bias in biases if bias is not None], norms)[-1]
        return x + RESIDUAL * branch.to(dtype)


def _widths(weights: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Where the inputs of the last convolution begin and end, and where the outputs of all do."""
    outputs = [len(weight) for weight in weights]
    inputs = [0, weights[0].shape[1], *outputs[:-1]]
    return list(accumulate(inputs)), list(accumulate([0, *outputs]))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _pushed(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], norms: Sequence[nn.Module]
) -> list[Tensor]:
    """The inputs of the five convolutions, and what the last of them makes."""
    starts, _ = _widths(weights)
    outputs = [len(weight) for weight in weights]
    sums: list[Tensor | None] = [None] * len(weights)
    made, each = [x], x
    for i, norm in enumerate(norms):
        merged = torch.cat([weight[:, starts[i] : starts[i + 1]] for weight in weights[i:]])
        merged = merged.contiguous(memory_format=torch.channels_last)
        shares = F.conv2d(each, merged, padding=1).split(outputs[i:], 1)
        for k, share in enumerate(shares, start=i):
            before, added = sums[k], share.to(_sum_dtype(x))
            sums[k] = added if before is None else before + added
        total = sums[i]
        assert total is not None
        total = norm(total + biases[i].view(1, -1, 1, 1))
        each = total if i == len(weights) - 1 else F.leaky_relu(total, SLOPE)
        each = each.to(x.dtype)
        made.append(each)
    return made


class _Hybrid(torch.autograd.Function):
    """The branch of a block without normalisation, and its gradient by hand."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Five weights, then five biases."""
        weights, biases = parameters[:5], parameters[5:]
        *inputs, out = _pushed(x, weights, biases, [nn.Identity()] * 5)
        seen = torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(seen, *weights)
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor, ...]:
        """From the last convolution to the first: each pushes its gradient into all its inputs."""
        seen, *weights = ctx.saved_tensors
        starts, ends = _widths(weights)
        out, dtype = gradients[0], _sum_dtype(seen)
        count = len(weights)
        sums: list[Tensor] = [torch.zeros((), dtype=dtype, device=seen.device)] * count
        through: list[Tensor] = [out] * count
        for k in reversed(range(count)):
            if k == count - 1:
                each = out.to(seen.dtype)
            else:
                value = seen[:, starts[k + 1] : starts[k + 2]]
                each = torch.where(value > 0, sums[k + 1], SLOPE * sums[k + 1]).to(seen.dtype)
            each = each.contiguous(memory_format=torch.channels_last)
            through[k] = each
            shares = F.conv_transpose2d(each, weights[k], padding=1)
            for i in range(k + 1):
                sums[i] = sums[i] + shares[:, starts[i] : starts[i + 1]].to(dtype)

        # one weight gradient for all: of every input with every output
        joined = torch.cat(through, 1).contiguous(memory_format=torch.channels_last)
        whole = seen.new_empty(joined.shape[1], seen.shape[1], 3, 3)
        ones = [1, 1]
        _, square, _ = torch.ops.aten.convolution_backward(
            joined, seen, whole.contiguous(memory_format=torch.channels_last), None,
            ones, ones, ones, False, [0, 0], 1, [False, True, False],
        )  # fmt: skip
        bias = joined.sum((0, 2, 3), dtype=dtype)
        return (
            sums[0].to(seen.dtype),
            *(square[ends[k] : ends[k + 1], : weights[k].shape[1]] for k in range(count)),
            *(bias[ends[k] : ends[k + 1]] for k in range(count)),
        )
