"""3x3 convolutions of bf16 pictures on a CPU with 2.25 times fewer products (`planes.c` has the algorithm).

A *chain* is one convolution, or a dense block: several, each of which reads what all before it read and made. Every
map is cut into tiles once for all its readers; backward likewise, every gradient once for all that it
reaches. The products are torch's, sixteen [tiles inputs] x [inputs outputs] at once.

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

Maps = Float[Tensor, "b c h w"]
Kernels = Float[Tensor, "16 outputs inputs"]
_LEAST_WORK, _LEAST_TILES = 32 * 64, 128
"""Inputs times outputs, and tiles, from which on the products saved are more than what the tiles cost, and
the kernels, if those are not kept."""
_KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""G of `planes.c`."""
_G = torch.kron(_KERNEL, _KERNEL)
"""[16 9]: the same for both dimensions."""


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size; under bf16 autocast it may be Winograd's."""

    winograd = False
    """Set by `trainer.speed`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, input: Maps) -> Maps:  # noqa: A002  the name of nn.Conv2d
        weight = self.weight  # once: spectral normalisation computes it
        if self.winograd and fits(input, [weight]):
            return chain(input, [weight], [self.bias])
        out: Tensor = self._conv_forward(input, weight, self.bias)
        return out


def shuffled(conv: Conv3x3, x: Maps, factor: int) -> Maps:
    """`pixel_shuffle(conv(x), factor)`, with the channels of each new pixel side by side from the start.

    torch's own moves every value of channels-last maps on its own, backward 2 ns each.
    """
    weight = conv.weight
    if not (conv.winograd and fits(x, [weight])):
        out: Tensor = functional.pixel_shuffle(conv(x), factor)
        return out
    count, phases = len(weight) // factor**2, (factor, factor)
    by_phase = weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.view(count, -1).T.flatten()
    maps = chain(x, [by_phase], [bias]).permute(0, 2, 3, 1)  # [b h w phases * count]
    in_order: Tensor = maps.unflatten(3, (*phases, count)).transpose(2, 3)
    return in_order.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def fits(x: Maps, weights: Sequence[Tensor]) -> bool:
    """Whether a chain can be Winograd's, and gains by it: bf16 on a CPU, sides even, channels enough."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.shape[2] % 2 or x.shape[3] % 2:
        return False
    if any(weight.shape[0] % 16 or weight.shape[1] % 16 for weight in weights):
        return False
    tiles = x.numel() // x.shape[1] // 4
    learnt = any(weight.requires_grad for weight in weights)
    work = max(weight.shape[0] * weight.shape[1] for weight in weights)
    return work >= _LEAST_WORK and (tiles >= _LEAST_TILES or not learnt)


def chain(
    x: Maps, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, slope: float = 1.0
) -> Maps:
    """What the last convolution makes; the others are followed by a LeakyReLU."""
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Chain.apply(x.to(torch.bfloat16), slope, *weights, *biases)  # type: ignore[no-untyped-call]  # as torch has it
    return out


class _Chain(torch.autograd.Function):
    """The chain of n weights [outputs inputs 3 3] and n biases [outputs] or None."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Tensor,
        slope: float,
        *parameters: Tensor,
    ) -> Tensor:
        """Every map read is kept, and the kernels in the tiles' domain."""
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        kernels = [_transformed(weight) for weight in weights]
        outputs = [len(weight) for weight in weights]
        maps = [_last_inside(x), *(_empty(x, width) for width in outputs)]
        reads = list(accumulate([maps[0].shape[1], *outputs[:-1]]))
        for some in planes.few_at_once(x):
            cut, start = planes.room(x[some], reads[-1]), 0
            for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
                planes.tiles_in(maps[i][some], cut, start)
                start = reads[i]
                products = torch.bmm(cut[:, :, :start], kernel.mT)
                planes.tiles_out(products, bias, slope if i < count - 1 else 1.0, maps[i + 1][some])
        ctx.save_for_backward(*maps[:-1], *kernels)
        ctx.slope = slope
        ctx.biased = [bias is not None for bias in biases]
        return maps[-1]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last map to the first: what comes from all its readers, in one product."""
        count = len(ctx.biased)
        maps, kernels = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        out, x = _last_inside(gradients[0]), maps[0]
        to_x, learnt = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:])
        outputs = [kernel.shape[1] for kernel in kernels]
        starts = [0, *accumulate(each.shape[1] for each in maps)]
        ends = [0, *accumulate(outputs)]
        # of map i: the kernels of all its readers, and the gradients of those kernels
        reading = [
            torch.cat([kernel[:, :, starts[i] : starts[i + 1]] for kernel in kernels[i:]], 1)
            for i in range(count)
        ]
        found: dict[int, Tensor] = {}
        bias = torch.zeros(ends[-1])
        gradient = _empty(x, x.shape[1]) if to_x else None
        for some in planes.few_at_once(x):
            cut = planes.room(x[some], ends[-1])
            planes.grads_in(out[some], cut, ends[-2])
            for i in reversed(range(count)):
                of_readers = cut[:, :, ends[i] :].contiguous()
                if learnt:
                    seen = planes.room(x[some], maps[i].shape[1])
                    planes.tiles_in(maps[i][some], seen, 0)
                    these = torch.bmm(of_readers.mT, seen)
                    found[i] = found[i].add_(these) if i in found else these.float()
                if i:
                    products = torch.bmm(of_readers, reading[i])
                    planes.grads_out_and_in(products, maps[i][some], ctx.slope, cut, ends[i - 1])
            if learnt:  # of all pixels of a tile: the plane in which At's columns are 1
                bias += cut[5].sum(0, dtype=torch.float32)
            if gradient is not None:
                planes.grads_out(torch.bmm(cut, reading[0]), gradient[some])
        if not learnt:
            return gradient, None, *[None] * (2 * count)
        weights = _by_convolution([_transformed_back(found[i]) for i in range(count)], ends)
        biases = [
            bias[ends[k] : ends[k + 1]] if biased else None for k, biased in enumerate(ctx.biased)
        ]
        return gradient, None, *weights, *biases


def _by_convolution(by_map: Sequence[Tensor], ends: Sequence[int]) -> list[Tensor]:
    """Gradients of weights, which came for each map with those of all its readers, one below the other."""
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


def _transformed(weight: Tensor) -> Kernels:
    """G g Gt of [outputs inputs 3 3]: [16 outputs inputs]; kept with weights that are not learnt."""
    state = weight._version, weight.data_ptr(), weight.dtype  # a change in place, and one of `data`
    known, kept = getattr(weight, "_winograd", (None, None))
    if kept is not None and known == state:
        out: Tensor = kept
        return out
    outputs, inputs = weight.shape[:2]
    flat = weight.detach().float().permute(2, 3, 0, 1).reshape(9, -1)
    made = (_G @ flat).view(16, outputs, inputs).to(torch.bfloat16)
    if not weight.requires_grad:
        weight._winograd = (state, made)  # type: ignore[attr-defined]  # see above
    return made


def _transformed_back(gradient: Tensor) -> Tensor:
    """The adjoint, in float32."""
    _, outputs, inputs = gradient.shape
    flat = _G.T @ gradient.view(16, -1)
    return flat.view(3, 3, outputs, inputs).permute(2, 3, 0, 1)


def _last_inside(x: Maps) -> Maps:
    """The same with the channels of a pixel side by side."""
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Maps, channels: int) -> Maps:
    b, _, h, w = x.shape
    return torch.empty((b, channels, h, w), dtype=torch.bfloat16, memory_format=torch.channels_last)
