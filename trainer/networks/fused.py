"""A whole chain of dense blocks on a GPU, in kernels of our own, and its gradients by hand.

All maps of a block lie side by side in one picture of 192 channels, and each convolution reads a part of every
pixel and writes another, through its LeakyReLU: there are no concatenations and no passes in between. The
backward pass is the same from the last map to the first over a picture of gradients: what a map's convolution
gets from all that read the map is one convolution again. Both pictures together give all weights' gradients in one
product (cuDNN's), a triangle of which, 28 %, is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from trainer.networks.dense import RESIDUAL, SLOPE

Maps = BFloat16[Tensor, "b c h w"]
CONVOLUTIONS = 5
BLOCKS = 3
"""Of one residual of residuals."""
PIXELS = 128
"""Of a program: whole rows."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether maps, and a first weight of a block, are what the kernels are for."""
    b, features, height, width = x.shape
    growth = len(weight)
    powers = all(each & (each - 1) == 0 and each >= 32 for each in (features, growth))
    rows = width & (width - 1) == 0 and width <= PIXELS and height * width % PIXELS == 0
    small = b * height * width * (features + 4 * growth) < 2**31
    half = x.dtype in (torch.bfloat16, torch.float16) and weight.dtype == torch.float32
    return x.is_cuda and half and powers and rows and small


def blocks(x: Maps, parameters: Sequence[Tensor]) -> Maps:
    """Maps [B features h w] through dense blocks, three to a residual of residuals.

    `parameters` are those of all blocks, float32: five weights, channels last, then five biases. Their gradients
    are added to `.grad` at once, where there is one, and autograd sees none.
    """
    made: Tensor = _Blocks.apply(x, *parameters)  # type: ignore[no-untyped-call]  # as torch has it
    return made


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        *parameters: Tensor,
    ) -> Maps:
        """Keeps the maps and the kernels of each block."""
        features, growth = x.shape[1], len(parameters[0])
        count = len(parameters) // (2 * CONVOLUTIONS)
        pictures = [_picture(x, features + 4 * growth) for _ in range(count)]
        squares = [_gathered(_weights(parameters, number), x.dtype) for number in range(count)]
        out = _picture(x, features)
        pictures[0][:, :features] = x
        for number, (picture, square) in enumerate(zip(pictures, squares, strict=True)):
            biases = _biases(parameters, number)
            for k in range(CONVOLUTIONS - 1):
                reads = features + k * growth
                _forward(picture, square, k, biases[k], picture[:, reads : reads + growth])
            target = out if number == count - 1 else pictures[number + 1][:, :features]
            before = pictures[number - 2] if number % BLOCKS == BLOCKS - 1 else None
            _forward(picture, square, CONVOLUTIONS - 1, biases[-1], target, before=before)
        ctx.save_for_backward(*pictures, *squares, *parameters)
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last block to the first."""
        count = len(ctx.saved_tensors) // (2 + 2 * CONVOLUTIONS)
        pictures, squares = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        parameters = ctx.saved_tensors[2 * count :]
        given = gradients[0].contiguous(memory_format=torch.channels_last)
        found: list[Tensor | None] = [None] * len(parameters)
        last = _picture(pictures[0], pictures[0].shape[1])
        sums = _sums(last)
        _enter(given, last, sums, part=_part(count - 1))
        outer = given  # the gradient of what three blocks make
        for number in reversed(range(count)):
            picture, square = pictures[number], squares[number]
            growth = len(parameters[0])
            features = picture.shape[1] - 4 * growth
            for k in reversed(range(CONVOLUTIONS - 1)):
                _backward(picture, square, k, last, sums, growth=growth)
            before = None if number == 0 else _picture(picture, picture.shape[1])
            more = None if before is None else _sums(before)
            given_before = given
            given = _picture(picture, features)
            _backward_out(
                square,
                last,
                given_before,
                outer if number % BLOCKS == 0 else None,
                given,
                before,
                more,
                keep=RESIDUAL if number % BLOCKS == BLOCKS - 1 else 1.0,
                part=_part(number - 1),
            )
            _, whole, _ = torch.ops.aten.convolution_backward(
                last, picture, square, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
            )  # fmt: skip
            mine = slice(number * 2 * CONVOLUTIONS, (number + 1) * 2 * CONVOLUTIONS)
            found[mine] = _spread(whole, sums, parameters[mine])
            if number % BLOCKS == 0:
                outer = given
            if before is not None and more is not None:
                last, sums = before, more
        return given, *found


def _part(number: int) -> float:
    """Of a block's gradient that enters its last convolution, from what came out of the block behind it."""
    return RESIDUAL**2 if number % BLOCKS == BLOCKS - 1 else RESIDUAL


def _weights(parameters: Sequence[Tensor], number: int) -> Sequence[Tensor]:
    return parameters[2 * CONVOLUTIONS * number :][:CONVOLUTIONS]


def _biases(parameters: Sequence[Tensor], number: int) -> Sequence[Tensor]:
    return parameters[2 * CONVOLUTIONS * number :][CONVOLUTIONS : 2 * CONVOLUTIONS]


def _picture(like: Tensor, channels: int) -> Maps:
    b, _, h, w = like.shape
    return torch.empty(
        (b, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )  # fmt: skip


def _programs(picture: Tensor) -> int:
    return picture.shape[0] * picture.shape[2] * picture.shape[3] // PIXELS


def _sums(picture: Tensor) -> Tensor:
    return torch.empty(_programs(picture), picture.shape[1], device=picture.device)


def _gathered(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    from trainer.networks import fused_kernels as kernels

    features, growth = weights[0].shape[1], len(weights[0])
    side = features + 4 * growth
    square = torch.empty(
        (side, side, 3, 3), dtype=dtype, device=weights[0].device, memory_format=torch.channels_last
    )  # fmt: skip
    wide = 1 << (side - 1).bit_length()
    kernels.gather[side, 9](*weights, square, FEATURES=features, GROWTH=growth, WIDE=wide)
    return square


def _spread(
    square: Tensor, sums: Tensor, parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    from trainer.networks import fused_kernels as kernels

    weights = parameters[:CONVOLUTIONS]
    features, growth = weights[0].shape[1], len(weights[0])
    side = features + 4 * growth
    grads = [each.grad for each in parameters]
    made: list[Tensor | None] = [None] * len(parameters)
    for i, each in enumerate(parameters):
        if grads[i] is None:
            made[i] = grads[i] = torch.zeros_like(each)
    square = square.contiguous(memory_format=torch.channels_last)
    wide = 1 << (side - 1).bit_length()
    rows = 1 << (len(sums) - 1).bit_length()
    kernels.spread[side, 9](
        square, sums, *grads, len(sums), FEATURES=features, GROWTH=growth, WIDE=wide, ROWS=rows
    )
    return made


def _common(picture: Tensor, *, inputs: int, outputs: int, side: int, back: bool) -> dict[str, Any]:
    step = 64 if inputs % 64 == 0 else 32
    return {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "WIDTH": picture.shape[3],
        "ALONG_INPUTS": 9 * side if back else 1,
        "ALONG_OUTPUTS": 1 if back else 9 * side,
        "TAP": -side if back else side,
        "PIXELS": PIXELS,
        "STEP": step,
        "STAGES": 3,
        "num_warps": 4 if outputs <= 32 else 8,
    }


def _forward(
    picture: Maps, square: Tensor, k: int, bias: Tensor, target: Maps, *, before: Maps | None = None
) -> None:
    from trainer.networks import fused_kernels as kernels

    side, outputs = picture.shape[1], len(bias)
    last = k == CONVOLUTIONS - 1
    growth = side - outputs if last else outputs  # features and four growths
    growth = growth // 4 if last else growth
    inputs = side - (CONVOLUTIONS - 1 - k) * growth
    kernels.forward[(_programs(picture),)](
        picture,
        square[k * growth :],
        bias,
        target,
        picture,
        picture if before is None else before,
        picture.shape[2],
        PITCH=side,
        TARGET_PITCH=target.stride(3),
        RESIDUALS=0 if not last else 1 if before is None else 2,
        RESIDUAL=RESIDUAL,
        SLOPE=SLOPE,
        **_common(picture, inputs=inputs, outputs=outputs, side=side, back=False),
    )


def _backward(
    picture: Maps, square: Tensor, k: int, last: Maps, sums: Tensor, *, growth: int
) -> None:
    """The gradients of convolution k's map, from the convolutions after it."""
    from trainer.networks import fused_kernels as kernels

    side = picture.shape[1]
    start, reader = side - (CONVOLUTIONS - 1 - k) * growth, (k + 1) * growth
    kernels.backward[(_programs(picture),)](
        last[:, reader:],
        square[reader:, start:, 2:, 2:],
        picture[:, start:],
        last[:, k * growth :],
        sums[:, k * growth :],
        picture.shape[2],
        PITCH=side,
        SLOPE=SLOPE,
        **_common(picture, inputs=side - reader, outputs=growth, side=side, back=True),
    )


def _backward_out(
    square: Tensor,
    last: Maps,
    first: Maps,
    second: Maps | None,
    target: Maps,
    before: Maps | None,
    more: Tensor | None,
    *,
    keep: float,
    part: float,
) -> None:
    """The gradient of a block's input, and what of it enters the block before."""
    from trainer.networks import fused_kernels as kernels

    side, features = last.shape[1], target.shape[1]
    shared = before is not None and more is not None
    kernels.backward_out[(_programs(last),)](
        last,
        square[:, :, 2:, 2:],
        first,
        first if second is None else second,
        target,
        before[:, side - features :] if before is not None else target,
        more[:, side - features :] if more is not None else target,
        last.shape[2],
        keep,
        part,
        PITCH=side,
        SECOND=second is not None,
        SHARED=shared,
        **_common(last, inputs=side, outputs=features, side=side, back=True),
    )


def _enter(given: Maps, last: Maps, sums: Tensor, *, part: float) -> None:
    from trainer.networks import fused_kernels as kernels

    side, features = last.shape[1], given.shape[1]
    kernels.enter[(_programs(given),)](
        given, last[:, side - features :], sums[:, side - features :], part, PITCH=side, OUTPUTS=features, PIXELS=PIXELS
    )  # fmt: skip
