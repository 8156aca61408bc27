"""A dense block's way forward and back on a GPU, as launches of `kernels`.

A *picture* of the block's maps has what it was given and what its first four convolutions made, [B 192 h w]; another
one has the gradients of what all five made. Both together give all weights' gradients in one product (cuDNN's), a
triangle of which, 28 %, is thrown away. A square of kernels, [192 192 3 3], holds the five weights likewise.

Batch normalisation needs a map's moments before the first of its values is done, so what it normalises is a picture
of its own, and each map and each gradient takes one pass more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.networks.constants import RESIDUAL, SLOPE

Maps = Float[Tensor, "b c h w"]
CONVOLUTIONS = 5
PIXELS = 128
"""Of a program, whole rows; with the three numbers below the fastest of 118 ways on an H100 (docs/internals/log.md)."""
STEP = 32
"""Input channels that a program multiplies at a time."""
STAGES = 3
"""Of those, on their way at the same time."""
WARPS, MORE_WARPS = 4, 8
"""In the registers of four there is no room for 128 outputs, nor for fewer on other GPUs (`make test-kernels`)."""
NORM_PIXELS, NORM_WARPS = 256, 8
"""Of a program that normalises."""
MOST_MOMENTS = 2**15
"""Programs times channels of a map: one that normalises has no room for the moments of more (64 patches of 32x32)."""


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


class BlockPass:
    """One block in one step: first everything forward, then everything back."""

    def __init__(self, block: Block, like: Maps) -> None:
        from trainer.networks.kernels import convolve, norms, weights

        self.convolve: Any = convolve
        self.norms: Any = norms
        self.weights: Any = weights
        self.block, self.normed = block, bool(block.norms)
        self.growth, self.features = len(block.weights[0]), like.shape[1]
        self.side = self.features + 4 * self.growth
        self.maps = picture(like, self.side)
        self.raw = torch.empty_like(self.maps) if self.normed else self.maps
        self.gradients = self.maps  # a picture of its own from `enter` on
        pixels = like.shape[0] * like.shape[2] * like.shape[3]
        self.programs, self.norm_programs = pixels // PIXELS, pixels // NORM_PIXELS
        # of each program: moments of a map, later sums of a gradient
        self.sums = torch.empty(self.programs, 1 + self.normed, self.side, device=like.device)
        self.scales = torch.empty(2, self.side, device=like.device)
        self.new: dict[int, Tensor] = {}
        """Gradients of parameters that had none."""
        self.square = torch.empty(
            (self.side, self.side, 3, 3), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
        )  # fmt: skip
        self.weights.gather[self.side, 9](*block.weights, self.square, **self._sizes())

    @property
    def given(self) -> Maps:
        """Where the block's input lies."""
        return self.maps[:, : self.features]

    def map_of(self, k: int) -> Maps:
        """Where convolution k's map lies, one of the first four."""
        return self.maps[:, self._reads(k) : self._reads(k + 1)]

    def take(self, x: Maps) -> None:
        """The block's input."""
        self.given.copy_(x)

    # forward

    def forward(self, k: int, target: Maps, *, before: Maps | None = None) -> None:
        """Convolution k into a map; the last one with the residual, and that of three blocks from `before`."""
        made = self._made(k)
        to = self.raw[:, made] if self.normed else target
        residuals = 0 if k < CONVOLUTIONS - 1 else 1 if before is None else 2
        ends = {"RESIDUALS": residuals, "RESIDUAL": RESIDUAL, "SLOPE": SLOPE}
        first, second = self.maps, self.maps if before is None else before
        self.convolve.forward[(self.programs,)](
            self.maps, self.square[made], self.block.biases[k], to, first, second,
            self.sums[:, :, made], self.maps.shape[2],
            PITCH=self.side, TARGET_PITCH=to.stride(3), NORM=self.normed, **ends,
            **self._convolution(self._reads(k), made, back=False),
        )  # fmt: skip
        if self.normed:
            norm = self.block.norms[k]
            self.norms.normalise[(self.norm_programs,)](
                to, self.sums[:, :, made], norm.weight, norm.bias, norm.running_mean, norm.running_var,
                norm.num_batches_tracked, self.scales[:, made], target, first, second, self.programs,
                TARGET_PITCH=target.stride(3), EPS=norm.eps, MOMENTUM=norm.momentum, **ends,
                **self._normalisation(made),
            )  # fmt: skip

    # back

    def enter(self, gradient: Maps, *, part: float) -> None:
        """A part of the gradient behind the block enters its last convolution."""
        self.gradients = torch.empty_like(self.maps)
        last = self._made(CONVOLUTIONS - 1)
        self.convolve.enter[(self.programs,)](
            gradient, self.gradients[:, last], self.raw[:, last], self.scales[:, last], self.sums[:, :, last], part,
            PITCH=self.side, OUTPUTS=self.features, NORM=self.normed, PIXELS=PIXELS,
        )  # fmt: skip

    def backward(self, k: int) -> None:
        """The gradient of what convolution k made, through its LeakyReLU, from the convolutions after it."""
        made, start = self._made(k), self._reads(k)
        self.convolve.backward[(self.programs,)](
            self.gradients[:, made.stop :], self.square[made.stop :, start:, 2:, 2:], self.maps[:, start:],
            self.raw[:, made], self.scales[:, made], self.gradients[:, made], self.sums[:, :, made],
            self.maps.shape[2], PITCH=self.side, SLOPE=SLOPE, NORM=self.normed,
            **self._convolution(self.side - made.stop, made, back=True),
        )  # fmt: skip

    def normalise_back(self, k: int) -> None:
        """From the gradient behind normalisation k, where there is one, to that before it."""
        if not self.normed:
            return
        made, norm = self._made(k), self.block.norms[k]
        self.norms.normalise_back[(self.norm_programs,)](
            self.gradients[:, made], self.raw[:, made], self.scales[:, made], self.sums[:, :, made],
            norm.weight, self._gradient(norm.weight), self._gradient(norm.bias), self.programs,
            **self._normalisation(made),
        )  # fmt: skip

    def backward_out(
        self,
        first: Maps,
        second: Maps | None,
        before: BlockPass | None,
        *,
        keep: float,
        part: float,
    ) -> Maps:
        """The gradient of the block's input, `keep` of `first` and all of `second` added; `part` enters `before`."""
        target = picture(self.maps, self.features)
        entered = before or self
        if before is not None:
            before.gradients = torch.empty_like(before.maps)
        last = self._made(CONVOLUTIONS - 1)
        self.convolve.backward_out[(self.programs,)](
            self.gradients, self.square[:, :, 2:, 2:], first, first if second is None else second, target,
            entered.gradients[:, last], entered.raw[:, last], entered.scales[:, last], entered.sums[:, :, last],
            self.maps.shape[2], keep, part,
            PITCH=self.side, SECOND=second is not None, SHARED=before is not None, NORM=self.normed,
            **self._convolution(self.side, slice(0, self.features), back=True),
        )  # fmt: skip
        return target

    def spread(self) -> list[Tensor | None]:
        """Add the gradients of weights and biases; returns those that had none, in the order of the parameters."""
        _, square, _ = torch.ops.aten.convolution_backward(
            self.gradients, self.maps, self.square, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )  # fmt: skip
        square = square.contiguous(memory_format=torch.channels_last)
        grads = [self._gradient(each) for each in (*self.block.weights, *self.block.biases)]
        # what is normalised does not depend on a bias before it: that has no gradient
        self.weights.spread[self.side, 9](
            square, self.sums, *grads, self.programs,
            ROWS=above(self.programs), BIASES=not self.normed, **self._sizes(),
        )  # fmt: skip
        return [self.new.get(id(each)) for each in self.block.parameters()]

    # what launches have in common

    def _reads(self, k: int) -> int:
        """How many channels convolution k reads; its own come behind them."""
        return self.features + k * self.growth

    def _made(self, k: int) -> slice:
        """Convolution k's channels among those that all made: of gradients, moments and rows of the square."""
        start = k * self.growth
        return slice(start, self.side if k == CONVOLUTIONS - 1 else start + self.growth)

    def _gradient(self, parameter: Tensor) -> Tensor:
        """Where a parameter's gradient is added to."""
        if parameter.grad is not None and parameter.requires_grad:
            return parameter.grad
        return self.new.setdefault(id(parameter), torch.zeros_like(parameter))

    def _sizes(self) -> dict[str, int]:
        return {"FEATURES": self.features, "GROWTH": self.growth, "WIDE": above(self.side)}

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
            "num_warps": WARPS
            if hopper(self.maps) and made.stop - made.start <= 64
            else MORE_WARPS,
        }

    def _normalisation(self, made: slice) -> dict[str, int]:
        return {
            "PITCH": self.side,
            "OUTPUTS": made.stop - made.start,
            "EACH": PIXELS,
            "ROWS": above(self.programs),
            "PIXELS": NORM_PIXELS,
            "num_warps": NORM_WARPS,
        }


def picture(like: Tensor, channels: int) -> Maps:
    """Room for maps beside others, channels last."""
    b, _, h, w = like.shape
    return torch.empty(
        (b, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )  # fmt: skip


def hopper(x: Tensor) -> bool:
    """Whether products read their factors from shared memory where a tensor lies, as on H100 and B200."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def above(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << (count - 1).bit_length()
