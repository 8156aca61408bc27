"""A chain of 3x3 Winograd convolutions, with its gradients.

A *chain* is one convolution, or a dense block: several, each of which reads what all before it read and made. All
maps of a chain lie side by side, so that a convolution reads a part of each pixel; its gradients, likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from trainer import native
from trainer.networks import planes


class Chain(torch.autograd.Function):
    """n weights [outputs inputs 3 3] and n biases [outputs] or None; each has a LeakyReLU behind it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Tensor,
        slopes: Sequence[float],
        *parameters: Tensor,
    ) -> Tensor:
        """What the last convolution makes. All maps are kept, and the weights."""
        weights, biases = parameters[: len(slopes)], parameters[len(slopes) :]
        reads = [weight.shape[1] for weight in weights]
        maps = planes.last_inside(x)
        if len(weights) > 1:
            maps = planes.empty(x, reads[-1])
            maps[:, : reads[0]] = x
        out = planes.empty(x, len(weights[-1]))
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            to = out if i == len(weights) - 1 else maps[:, reads[i] : reads[i + 1]]
            planes.convolve(maps[:, : reads[i]], _kernels([weight]), to, bias=bias, slope=slopes[i])
        ctx.save_for_backward(maps, out, *weights)
        ctx.slopes, ctx.reads = slopes, reads
        ctx.biased = [bias is not None for bias in biases]
        return out

    @staticmethod
    @native.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last map to the first: what comes from all its readers, in one convolution."""
        slopes, reads, count = ctx.slopes, ctx.reads, len(ctx.slopes)
        maps, out, *weights = ctx.saved_tensors
        ends = [0, *accumulate(len(weight) for weight in weights)]
        last = planes.through(gradients[0], out, slopes[-1])
        grads = last
        if count > 1:
            grads = planes.empty(out, ends[-1])
            grads[:, ends[-2] :] = last

        def back(first: int, to: Tensor, start: int, **settings: Any) -> None:  # noqa: ANN401  of `convolve`
            """The gradient of the channels from `start` on, from the convolutions from `first` on that read them."""
            readers = weights  # with which kernels may be kept
            if count > 1:
                readers = [each[:, start : start + to.shape[1]] for each in weights[first:]]
            planes.convolve(grads[:, ends[first] :], _kernels(readers, back=True), to, **settings)

        for i in reversed(range(1, count)):
            part = maps[:, reads[i - 1] : reads[i]]
            back(i, grads[:, ends[i - 1] : ends[i]], reads[i - 1], seen=part, slope=slopes[i - 1])
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = planes.empty(out, reads[0])
            back(0, to_x, 0)
        if not any(ctx.needs_input_grad[2:]):
            return to_x, None, *[None] * (2 * count)
        of_eight = [read for read, weight in zip(reads, weights, strict=True) for _ in weight[::8]]
        whole, bias = planes.kernels_of(maps, grads, of_eight)
        each = [whole[ends[i] : ends[i + 1], : reads[i]] for i in range(count)]
        biases = [bias[ends[i] : ends[i + 1]] if ctx.biased[i] else None for i in range(count)]
        return to_x, None, *each, *biases


def _kernels(weights: Sequence[Tensor], *, back: bool = False) -> Tensor:
    """Kernels of a convolution for `planes.convolve`; `back`: of its gradient, which all readers send."""

    def made() -> Tensor:
        outputs, inputs = weights[0].shape[:2]
        if not back:
            to = planes.room_for_kernels(inputs, outputs)
            planes.kernels_in(weights[0], to)
            return to
        firsts = [0, *accumulate(len(weight) for weight in weights)]
        to = planes.room_for_kernels(firsts[-1], inputs)
        for weight, first in zip(weights, firsts, strict=False):
            planes.kernels_in(weight, to, first=first, back=True)
        return to

    return kept(weights[0], f"keeping {back}", made) if len(weights) == 1 else made()


def kept(weight: Tensor, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What is made of a weight; kept with it if it is not learnt."""
    if weight.requires_grad or not weight.is_leaf or weight.is_inference():
        return make()
    # a change in place, or other data; not one in place of `data`, which nobody can see
    state = weight._version, weight.data_ptr(), weight.dtype
    store: dict[str, tuple[object, Tensor]] = weight.__dict__.setdefault("_winograd", {})
    known, value = store.get(name, (None, None))
    if value is None or known != state:
        value = make()
        store[name] = state, value
    return value
