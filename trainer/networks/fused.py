"""A whole chain of dense blocks on a GPU, in kernels of our own (`fused_kernels`), and its gradients by hand.

All maps of a block lie side by side in one picture of 192 channels, and each convolution reads a part of every
pixel and writes another, through its LeakyReLU: there are no concatenations and no passes in between. The
backward pass is the same from the last map to the first over a picture of gradients: what a map's convolution
gets from all that read the map is one convolution again. Both pictures together give all weights' gradients in one
product (cuDNN's), a triangle of which, 28 %, is thrown away.

Batch normalisation needs a map's moments before the first of its values is done, so what it normalises is a picture
of its own, and each map and each gradient takes one pass more.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.networks.dense import RESIDUAL, SLOPE

Maps = Float[Tensor, "b c h w"]
COUNT = 5
"""Convolutions of a block."""
BLOCKS = 3
"""Of one residual of residuals."""
PIXELS = 128
"""Of a program: whole rows."""
NORM_PIXELS = 256
"""Of a program that normalises."""
STEP = 32
"""Input channels that a program multiplies at a time."""
STAGES = 3
"""Of those, on their way at the same time."""
WARPS = 4
OVERLAP = True
"""Whether kernels are launched before the one before them ends, on GPUs that can (Hopper and later)."""


@dataclass(frozen=True)
class Block:
    """The parameters of a dense block, float32, and what its normalisations remember."""

    weights: Sequence[Tensor]
    """[outputs inputs 3 3], channels last."""
    biases: Sequence[Tensor]
    norms: Sequence[nn.BatchNorm2d]
    """None or five."""

    def parameters(self) -> list[Tensor]:
        """In the order of their gradients."""
        scales = [norm.weight for norm in self.norms] + [norm.bias for norm in self.norms]
        return [*self.weights, *self.biases, *scales]


def missing() -> str:
    """Why this machine cannot have the kernels; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton, which compiles kernels for GPUs, is not installed"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "there is no C compiler, which Triton needs"
    return ""


def fits(x: Tensor, block: Block) -> bool:
    """Whether maps, and blocks like this one, are what the kernels are for."""
    b, features, height, width = x.shape
    growth = len(block.weights[0])
    powers = all(each & (each - 1) == 0 and each >= 32 for each in (features, growth))
    rows = width & (width - 1) == 0 and width <= PIXELS and height * width % NORM_PIXELS == 0
    small = b * height * width * (features + 4 * growth) < 2**31
    half = x.dtype in (torch.bfloat16, torch.float16) and block.weights[0].dtype == torch.float32
    norms = all(type(norm) is nn.BatchNorm2d and norm.momentum for norm in block.norms)
    return x.is_cuda and half and powers and rows and small and norms


def through(x: Maps, blocks: Sequence[Block]) -> Maps:
    """Maps [B features h w] through dense blocks in training mode, three to a residual of residuals.

    The gradients of parameters are added to their `.grad` at once, where there is one, and autograd sees none.
    """
    parameters = [each for block in blocks for each in block.parameters()]
    made: Tensor = _Through.apply(x, blocks, *parameters)  # type: ignore[no-untyped-call]  # as torch has it
    return made


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        blocks: Sequence[Block],
        *parameters: Tensor,
    ) -> Maps:
        """Keeps the pictures and the kernels of each block."""
        features, growth = x.shape[1], len(blocks[0].weights[0])
        normed = bool(blocks[0].norms)
        steps = [_Step(block, _picture(x, features + 4 * growth), normed) for block in blocks]
        steps[0].maps[:, :features] = x
        out = _picture(x, features)
        for number, step in enumerate(steps):
            for k in range(COUNT - 1):
                step.forward(k, step.maps[:, step.reads(k) : step.reads(k + 1)])
            target = out if number == len(steps) - 1 else steps[number + 1].maps[:, :features]
            before = steps[number - 2].maps if number % BLOCKS == BLOCKS - 1 else None
            step.forward(COUNT - 1, target, before=before)
        ctx.steps = steps
        ctx.save_for_backward(*parameters)  # which must not change before the backward pass
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last block to the first."""
        _ = ctx.saved_tensors
        steps: list[_Step] = ctx.steps
        ctx.steps = None
        given = gradients[0].contiguous(memory_format=torch.channels_last)
        steps[-1].enter(given, part=_part(len(steps) - 1))
        found: list[Tensor | None] = []
        outer = given  # the gradient of what three blocks make
        for number in reversed(range(len(steps))):
            step = steps.pop()
            for k in reversed(range(COUNT)):
                if k < COUNT - 1:
                    step.backward(k)
                step.normalise_back(k)
            given = step.backward_out(
                given,
                outer if number % BLOCKS == 0 else None,
                steps[-1] if steps else None,
                keep=RESIDUAL if number % BLOCKS == BLOCKS - 1 else 1.0,
                part=_part(number - 1),
            )
            found = [*step.spread(), *found]
            if number % BLOCKS == 0:
                outer = given
        return given, None, *found


def _part(number: int) -> float:
    """Of the gradient behind a block, what enters its last convolution."""
    return RESIDUAL**2 if number % BLOCKS == BLOCKS - 1 else RESIDUAL


class _Step:
    """A block on its way forward and back."""

    def __init__(self, block: Block, maps: Maps, normed: bool) -> None:
        from trainer.networks import fused_kernels

        self.kernels: Any = fused_kernels
        overlap = OVERLAP and maps.is_cuda and torch.cuda.get_device_capability(maps.device) >= (9, 0)
        self.launch = {"OVERLAP": overlap} | ({"launch_pdl": True} if overlap else {})
        self.block, self.maps, self.normed = block, maps, normed
        self.side, self.growth = maps.shape[1], len(block.weights[0])
        self.features = self.side - 4 * self.growth
        pixels = maps.shape[0] * maps.shape[2] * maps.shape[3]
        self.programs, self.norm_programs = pixels // PIXELS, pixels // NORM_PIXELS
        self.raw = torch.empty_like(maps) if normed else maps
        rows = 2 if normed else 1
        self.sums = torch.empty(self.programs, rows, self.side, device=maps.device)
        self.scales = torch.empty(2, self.side, device=maps.device)
        self.gradients = maps  # a picture of its own from the backward pass on
        self.made: dict[int, Tensor] = {}
        """Gradients of parameters that had none."""
        self.square = torch.empty(
            (self.side, self.side, 3, 3), dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last
        )  # fmt: skip
        self.kernels.gather[self.side, 9](*block.weights, self.square, **self._sizes())

    def reads(self, k: int) -> int:
        """How many channels convolution k reads; its own come behind them."""
        return self.features + k * self.growth

    def forward(self, k: int, target: Maps, *, before: Maps | None = None) -> None:
        """Convolution k into a map; the last one with the residual, and that of three blocks from `before`."""
        made = self._made(k)
        first, second = self.maps, self.maps if before is None else before
        ends = {
            "TARGET_PITCH": target.stride(3),
            "RESIDUALS": 0 if k < COUNT - 1 else 1 if before is None else 2,
            "RESIDUAL": RESIDUAL,
            "SLOPE": SLOPE,
        }
        to = self.raw[:, made] if self.normed else target
        self.kernels.forward[(self.programs,)](
            self.maps, self.square[made], self.block.biases[k], to, first, second,
            self.sums[:, :, made], self.maps.shape[2], PITCH=self.side, NORM=self.normed,
            **(ends | {"TARGET_PITCH": to.stride(3)}),
            **self._convolution(self.reads(k), made, back=False),
        )  # fmt: skip
        if self.normed:
            norm = self.block.norms[k]
            self.kernels.normalise[(self.norm_programs,)](
                to, self.sums[:, :, made], norm.weight, norm.bias, norm.running_mean, norm.running_var,
                norm.num_batches_tracked, self.scales[:, made], target, first, second, self.programs,
                EPS=norm.eps, MOMENTUM=norm.momentum, **ends, **self._normalisation(made),
            )  # fmt: skip

    def enter(self, given: Maps, *, part: float) -> None:
        """The gradient behind the block enters its last convolution."""
        self.gradients = torch.empty_like(self.maps)
        last = self._made(COUNT - 1)
        self.kernels.enter[(self.programs,)](
            given, self.gradients[:, last], self.raw[:, last], self.scales[:, last], self.sums[:, :, last], part,
            PITCH=self.side, OUTPUTS=self.features, NORM=self.normed, PIXELS=PIXELS, **self.launch,
        )  # fmt: skip

    def backward(self, k: int) -> None:
        """The gradient of what convolution k made, from the convolutions after it."""
        made, start = self._made(k), self.reads(k)
        self.kernels.backward[(self.programs,)](
            self.gradients[:, made.stop :], self.square[made.stop :, start:, 2:, 2:], self.maps[:, start:],
            self.raw[:, made], self.scales[:, made], self.gradients[:, made], self.sums[:, :, made],
            self.maps.shape[2], PITCH=self.side, SLOPE=SLOPE, NORM=self.normed,
            **self._convolution(self.side - made.stop, made, back=True),
        )  # fmt: skip

    def normalise_back(self, k: int) -> None:
        """From the gradient behind normalisation k to that before it."""
        if not self.normed:
            return
        made, norm = self._made(k), self.block.norms[k]
        scale, shift = self._gradient(norm.weight), self._gradient(norm.bias)
        self.kernels.normalise_back[(self.norm_programs,)](
            self.gradients[:, made], self.raw[:, made], self.scales[:, made], self.sums[:, :, made],
            norm.weight, scale, shift, self.programs, **self._normalisation(made),
        )  # fmt: skip

    def backward_out(
        self, first: Maps, second: Maps | None, before: _Step | None, *, keep: float, part: float
    ) -> Maps:
        """The gradient of the block's input; a part of it enters the block before."""
        target = _picture(self.maps, self.features)
        at = before or self
        if before is not None:
            before.gradients = torch.empty_like(before.maps)
        last = self._made(COUNT - 1)
        self.kernels.backward_out[(self.programs,)](
            self.gradients, self.square[:, :, 2:, 2:], first, first if second is None else second, target,
            at.gradients[:, last], at.raw[:, last], at.scales[:, last], at.sums[:, :, last], self.maps.shape[2],
            keep, part, PITCH=self.side, SECOND=second is not None, SHARED=before is not None, NORM=self.normed,
            **self._convolution(self.side, slice(0, self.features), back=True),
        )  # fmt: skip
        return target

    def spread(self) -> list[Tensor | None]:
        """Add the gradients of weights and biases; returns those that had none, in the order of the parameters."""
        _, whole, _ = torch.ops.aten.convolution_backward(
            self.gradients, self.maps, self.square, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
            [False, True, False],
        )  # fmt: skip
        whole = whole.contiguous(memory_format=torch.channels_last)
        grads = [self._gradient(each) for each in (*self.block.weights, *self.block.biases)]
        # what is normalised next does not depend on a bias: its gradient is zero
        self.kernels.spread[self.side, 9](
            whole, self.sums, *grads, self.programs, ROWS=_above(self.programs), BIASES=not self.normed, **self._sizes()
        )  # fmt: skip
        return [self.made.get(id(each)) for each in self.block.parameters()]

    def _gradient(self, parameter: Tensor) -> Tensor:
        """Where a parameter's gradient is added to."""
        if parameter.grad is not None:
            return parameter.grad
        return self.made.setdefault(id(parameter), torch.zeros_like(parameter))

    def _made(self, k: int) -> slice:
        """The channels of convolution k in a picture of what convolutions make, and in one of gradients."""
        start = k * self.growth
        return slice(start, self.side if k == COUNT - 1 else start + self.growth)

    def _sizes(self) -> dict[str, int]:
        sizes = {"FEATURES": self.features, "GROWTH": self.growth, "WIDE": _above(self.side)}
        return sizes | self.launch

    def _convolution(self, inputs: int, made: slice, *, back: bool) -> dict[str, int]:
        return {
            "INPUTS": inputs,
            "OUTPUTS": made.stop - made.start,
            "WIDTH": self.maps.shape[3],
            "ALONG_INPUTS": 9 * self.side if back else 1,
            "ALONG_OUTPUTS": 1 if back else 9 * self.side,
            "TAP": -self.side if back else self.side,
            "PIXELS": PIXELS,
            "STEP": STEP,
            "STAGES": STAGES,
            "num_warps": WARPS,
        } | self.launch

    def _normalisation(self, made: slice) -> dict[str, int]:
        return {
            "PITCH": self.side,
            "OUTPUTS": made.stop - made.start,
            "EACH": PIXELS,
            "ROWS": _above(self.programs),
            "PIXELS": NORM_PIXELS,
            "num_warps": 8,
        } | self.launch


def _picture(like: Tensor, channels: int) -> Maps:
    b, _, h, w = like.shape
    return torch.empty(
        (b, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )  # fmt: skip


def _above(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
