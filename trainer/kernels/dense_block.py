"""A chain of dense blocks on a GPU as one autograd function, with its gradient by hand.

All maps of a block lie side by side in one activation buffer of 192 channels. Each convolution reads some channels
of every pixel and writes others, through its LeakyReLU: there are no concatenations and no passes in between. The
backward pass does the same from the last map to the first in a buffer of gradients: the gradient that a map gets
from all its readers is one convolution again (`dense_block_launches` has the launches of one block).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels.autograd import check_grads_accumulate, once_differentiable
from trainer.kernels.dense_block_launches import (
    CONVOLUTIONS,
    MAX_MOMENTS,
    NORM_PIXELS,
    PIXELS,
    BlockLaunches,
    BlockParams,
    Maps,
    activation_buffer,
    next_pow2,
)

BLOCKS = 3
"""Dense blocks inside one outer residual."""


def supports(x: Tensor, block: BlockParams) -> bool:
    """Whether the kernels can compute maps x through blocks like this one."""
    b, features, height, width = x.shape
    growth = len(block.weights[0])
    powers = all(count in (32, 64, 128) for count in (features, growth))
    rows = width & (width - 1) == 0 and width <= PIXELS and height * width % NORM_PIXELS == 0
    small = b * height * width * (features + 4 * growth) < 2**31
    half = x.dtype in (torch.bfloat16, torch.float16) and block.weights[0].dtype == torch.float32
    laid_out = all(
        weight.is_contiguous(memory_format=torch.channels_last) for weight in block.weights
    )
    norms = all(
        type(norm) is nn.BatchNorm2d and norm.training and norm.momentum for norm in block.norms
    )
    # each program that normalises reads the moments of all programs
    moments = next_pow2(b * height * width // PIXELS) * max(features, growth)
    few = not block.norms or moments <= MAX_MOMENTS
    return x.is_cuda and half and powers and rows and small and laid_out and norms and few


def run_blocks_accumulating_grads(x: Maps, blocks: Sequence[BlockParams]) -> Maps:
    """Maps [B features h w] through dense blocks in training mode, three to an outer residual.

    The backward pass adds the gradients of parameters to their `.grad` at once, where it exists; autograd sees none
    of them, and hooks on these parameters are not called. Only `backward()` may start it.
    """
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    out: Tensor = _RunBlocks.apply(x, blocks, *parameters)  # type: ignore[no-untyped-call]  # untyped in torch
    return out


class _RunBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  untyped in torch
        x: Maps,
        blocks: Sequence[BlockParams],
        *parameters: Tensor,
    ) -> Maps:
        """Keeps the activation buffer and the packed weights of each block."""
        launches = [BlockLaunches(block, x) for block in blocks]
        launches[0].load_input(x)
        out = activation_buffer(x, x.shape[1])
        for number, block in enumerate(launches):
            for k in range(CONVOLUTIONS - 1):
                block.forward(k, block.map_of(k))
            target = out if number == len(launches) - 1 else launches[number + 1].input
            outer = launches[number - 2].maps if _ends_outer_residual(number) else None
            block.forward(CONVOLUTIONS - 1, target, outer=outer)
        ctx.launches = launches
        ctx.save_for_backward(*parameters)  # torch then refuses a backward pass after they changed
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  untyped in torch
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Adds gradients from the last block to the first, and returns those of parameters without a `.grad`."""
        _ = ctx.saved_tensors
        _, *accumulators = (node for node, _ in ctx.next_functions)
        check_grads_accumulate(accumulators)
        launches: list[BlockLaunches] = list(ctx.launches)
        if not launches:
            raise RuntimeError("fused blocks have no second backward pass: their buffers are freed")
        ctx.launches = []  # the buffers of a block are freed as soon as its gradients are done
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        launches[-1].seed_gradient(gradient, part=_residual_share(launches[-1], len(launches) - 1))
        new: list[Tensor | None] = []
        outer = gradient  # behind the outer residual
        for number in reversed(range(len(launches))):
            block = launches.pop()
            block.normalise_back(CONVOLUTIONS - 1)
            for k in reversed(range(CONVOLUTIONS - 1)):
                block.backward(k)
                block.normalise_back(k)
            gradient = block.input_gradient(
                gradient,
                outer if _starts_outer_residual(number) else None,
                launches[-1] if launches else None,
                keep=block.params.residual if _ends_outer_residual(number) else 1.0,
                part=_residual_share(block, number - 1),
            )
            new = [*block.accumulate_grads(), *new]
            if _starts_outer_residual(number):
                outer = gradient
        return gradient, None, *new


def _starts_outer_residual(number: int) -> bool:
    """Whether a block is the first inside its outer residual."""
    return number % BLOCKS == 0


def _ends_outer_residual(number: int) -> bool:
    """Whether a block is the last inside its outer residual."""
    return number % BLOCKS == BLOCKS - 1


def _residual_share(block: BlockLaunches, number: int) -> float:
    """Factor of the gradient behind block `number` as it enters the block's last convolution."""
    residual = block.params.residual
    return residual**2 if _ends_outer_residual(number) else residual
