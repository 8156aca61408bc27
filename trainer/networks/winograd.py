"""Convolutions of bf16 pictures on a CPU with fewer products: 2.25 times where they are 3x3, and 1.78 times
where they are 4x4 of stride 2 (`tiles_3x3.c` has the algorithm).

A *chain* is one convolution, or a dense block: several 3x3, each of which reads what all before it read and made. Every
map is cut into tiles once for all its readers; backward likewise, every gradient once for all that it
reaches. The products are torch's, all planes' [tiles inputs] x [inputs outputs] at once.

Tiles and products are rounded to bf16 where the direct way rounds only the sum, so the result is off by
twice as much: 0.5 % of its spread instead of 0.23 % (`tests/trainer/test_winograd.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.networks import planes
from trainer.networks.planes import HALVING, KEEPING, Kernels, Tiling

Maps = Float[Tensor, "b c h w"]
_LEAST_WORK = 48 * 64
"""Inputs times outputs from which on the products saved are more than what the tiles cost."""


class _Conv(nn.Conv2d):
    """A convolution that may be Winograd's under bf16 autocast."""

    tiling: Tiling
    winograd = False
    """Set by `trainer.speed`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        tiling = self.tiling
        super().__init__(inputs, outputs, tiling.kernel, tiling.stride, padding=1, bias=bias)

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """The convolution, followed by a LeakyReLU."""
        weight = self.weight  # once: spectral normalisation computes it
        if self.winograd and fits(input, [weight], self.tiling):
            return chain(input, [weight], [self.bias], last_slope=slope, tiling=self.tiling)
        return _activated(self._conv_forward(input, weight, self.bias), slope)


class Conv3x3(_Conv):
    """Of stride 1: the sides stay as they are."""

    tiling = KEEPING


class Conv4x4(_Conv):
    """Of stride 2: the sides are halved."""

    tiling = HALVING


def _activated(x: Maps, slope: float) -> Maps:
    if slope == 0:
        return functional.relu(x)
    return x if slope == 1 else functional.leaky_relu(x, slope)


def shuffled(conv: Conv3x3, x: Maps, factor: int, slope: float = 1.0) -> Maps:
    """`pixel_shuffle(conv(x, slope), factor)`, with the channels of each new pixel side by side from the start.

    torch's own moves every value of channels-last maps on its own, backward 2 ns each.
    """
    weight = conv.weight
    if not (conv.winograd and fits(x, [weight])):
        out: Tensor = functional.pixel_shuffle(conv(x, slope), factor)
        return out
    count, phases = len(weight) // factor**2, (factor, factor)
    by_phase = weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.view(count, -1).T.flatten()
    maps = chain(x, [by_phase], [bias], last_slope=slope)
    in_order: Tensor = maps.permute(0, 2, 3, 1).unflatten(3, (*phases, count)).transpose(2, 3)
    return in_order.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def fits(x: Maps, weights: Sequence[Tensor], tiling: Tiling = KEEPING) -> bool:
    """Whether a chain can be Winograd's, and gains by it: bf16 on a CPU, whole tiles, channels enough."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    side = 2 * tiling.stride
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.shape[2] % side or x.shape[3] % side:
        return False
    if any(weight.shape[0] % 16 or weight.shape[1] % 16 for weight in weights):
        return False
    return max(weight.shape[0] * weight.shape[1] for weight in weights) >= _LEAST_WORK


def chain(
    x: Maps,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    slope: float = 1.0,
    last_slope: float = 1.0,
    tiling: Tiling = KEEPING,
) -> Maps:
    """What the last convolution makes, through a LeakyReLU of `last_slope`; the others have one of `slope`."""
    slopes = [slope] * (len(weights) - 1) + [last_slope]
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Chain.apply(x.to(torch.bfloat16), tiling, slopes, *weights, *biases)  # type: ignore[no-untyped-call]  # as torch has it
    return out


class _Chain(torch.autograd.Function):
    """The chain of n weights [outputs inputs 3 3] and n biases [outputs] or None."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Tensor,
        tiling: Tiling,
        slopes: Sequence[float],
        *parameters: Tensor,
    ) -> Tensor:
        """Every map is kept, and the kernels in the tiles' domain."""
        weights, biases = parameters[: len(slopes)], parameters[len(slopes) :]
        kernels = [_kernels_in(tiling, weight) for weight in weights]
        maps = [_last_inside(x), *(_empty(x, len(weight), tiling.stride) for weight in weights)]
        reads = [kernel.shape[2] for kernel in kernels]
        for some in tiling.few_at_once(x):
            cut, start = tiling.room(x[some], reads[-1]), 0
            for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
                planes.tiles_in(tiling, maps[i][some], cut, start)
                start = reads[i]
                products = torch.bmm(cut[:, :, :start], kernel.mT)
                planes.tiles_out(tiling, products, bias, slopes[i], maps[i + 1][some])
        ctx.save_for_backward(*maps, *kernels)
        ctx.tiling, ctx.slopes = tiling, slopes
        ctx.biased = [bias is not None for bias in biases]
        return maps[-1]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last map to the first: what comes from all its readers, in one product."""
        tiling, slopes, count = ctx.tiling, ctx.slopes, len(ctx.slopes)
        maps, kernels = ctx.saved_tensors[: count + 1], ctx.saved_tensors[count + 1 :]
        out, x = _last_inside(gradients[0]), maps[0]
        to_x, learnt = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        widths = [each.shape[1] for each in maps]
        starts = [0, *accumulate(width * tiling.phases for width in widths[:-1])]
        ends = [0, *accumulate(widths[1:])]
        # of map i: the kernels of all its readers, and the gradients of those kernels
        reading = [
            _side_by_side([kernel[:, :, starts[i] : starts[i + 1]] for kernel in kernels[i:]])
            for i in range(count)
        ]
        sides = (tiling.kernel, tiling.kernel)
        found = [torch.zeros(ends[-1] - ends[i], widths[i], *sides) for i in range(count)]
        bias = torch.zeros(ends[-1])
        gradient = torch.empty_like(x) if to_x else None
        for some in tiling.few_at_once(x):
            cut = tiling.room(x[some], ends[-1])
            planes.grads_in(tiling, out[some], maps[-1][some], slopes[-1], cut, ends[-2])
            for i in reversed(range(count)):
                of_readers = cut[:, :, ends[i] :].contiguous()
                if learnt:
                    seen = tiling.room(x[some], widths[i] * tiling.phases)
                    planes.tiles_in(tiling, maps[i][some], seen, 0)
                    planes.kernels_back(tiling, torch.bmm(of_readers.mT, seen), found[i])
                if i:
                    products = torch.bmm(of_readers, reading[i])
                    planes.grads_through(products, maps[i][some], slopes[i - 1], cut, ends[i - 1])
            if learnt:  # of all pixels of a tile
                bias += cut[tiling.whole].sum(0, dtype=torch.float32)
            if gradient is not None:
                planes.grads_out(tiling, torch.bmm(cut, reading[0]), gradient[some])
        if not learnt:
            return gradient, None, None, *[None] * (2 * count)
        biases = [
            bias[ends[k] : ends[k + 1]] if biased else None for k, biased in enumerate(ctx.biased)
        ]
        return gradient, None, None, *_by_convolution(found, ends), *biases


def _side_by_side(kernels: list[Kernels]) -> Kernels:
    return torch.cat(kernels, 1) if len(kernels) > 1 else kernels[0]


def _by_convolution(by_map: Sequence[Tensor], ends: Sequence[int]) -> list[Tensor]:
    """Gradients of weights, which came for each map with those of all its readers, one below the other."""
    if len(by_map) == 1:
        return list(by_map)
    return [
        torch.cat(
            [
                each[ends[k] - ends[i] : ends[k + 1] - ends[i]]
                for i, each in enumerate(by_map[: k + 1])
            ],
            1,
        )
        for k in range(len(by_map))
    ]


def _kernels_in(tiling: Tiling, weight: Tensor) -> Kernels:
    """A weight in the tiles' domain; kept with weights that are not learnt."""
    state = weight._version, weight.data_ptr(), weight.dtype  # a change in place, and one of `data`
    known, kept = getattr(weight, "_winograd", (None, None))
    if kept is not None and known == state:
        out: Kernels = kept
        return out
    made = planes.kernels_in(tiling, weight)
    if not weight.requires_grad:
        weight._winograd = (state, made)  # type: ignore[attr-defined]  # see above
    return made


def _last_inside(x: Maps) -> Maps:
    """The same with the channels of a pixel side by side."""
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Maps, channels: int, stride: int) -> Maps:
    b, _, h, w = x.shape
    shape = (b, channels, h // stride, w // stride)
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
