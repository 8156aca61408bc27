"""The kernel launches of one dense block, forward and backward.

An *activation buffer*, [B 192 h w], holds the block's input and the maps of its first four convolutions; a second
one holds the gradients of the outputs of all five. Both together give the gradients of all weights in one product
(cuDNN's), a triangle of which, 28 %, is thrown away. A *square* of weights, [192 192 3 3], packs the five likewise.

Batch normalisation needs the moments of a map before its first value is done. Values before normalisation
therefore have a buffer of their own, and each map and each gradient takes one pass more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "b c h w"]
CONVOLUTIONS = 5
PIXELS = 128
"""Pixels per program, whole rows; these four numbers are the fastest of 118 on an H100 (docs/internals/log.md)."""
STEP = 32
"""Input channels that a program multiplies at a time."""
STAGES = 3
"""Depth of the software pipeline over these channels."""
WARPS, MORE_WARPS = 4, 8
"""Four spill registers with 128 outputs, and with fewer on GPUs other than Hopper (`make test-kernels`)."""
NORM_PIXELS, NORM_WARPS = 256, 8
"""Pixels and warps of a program that normalises."""
MAX_MOMENTS = 2**15
"""Programs times channels of a map: a program that normalises has no room for more (64 patches of 32x32)."""


@dataclass(frozen=True)
class BlockParams:
    """The parameters of a dense block, float32, and its batch normalisations."""

    weights: Sequence[Tensor]
    """Five weights, [outputs inputs 3 3], channels last."""
    biases: Sequence[Tensor]
    norms: Sequence[nn.BatchNorm2d]
    """None or five."""
    slope: float
    """Negative slope of each LeakyReLU."""
    residual: float
    """Factor of the block's branch, and of the outer branch around three blocks."""

    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of their gradients."""
        scales = [norm.weight for norm in self.norms] + [norm.bias for norm in self.norms]
        return [*self.weights, *self.biases, *scales]


class BlockLaunches:
    """One block in one step: first all launches forward, then all backward."""

    def __init__(self, params: BlockParams, like: Maps) -> None:
        from trainer.kernels.triton import convolve, norms, weights

        self.convolve: Any = convolve
        self.norms: Any = norms
        self.weights: Any = weights
        self.params, self.normed = params, bool(params.norms)
        self.growth, self.features = len(params.weights[0]), like.shape[1]
        self.side = self.features + 4 * self.growth
        self.maps = activation_buffer(like, self.side)
        self.pre_norm = torch.empty_like(self.maps) if self.normed else self.maps
        self.gradients = self.maps  # a buffer of its own from `seed_gradient` on
        pixels = like.shape[0] * like.shape[2] * like.shape[3]
        self.programs, self.norm_programs = pixels // PIXELS, pixels // NORM_PIXELS
        # of each program: moments of a map, later sums of a gradient
        self.sums = torch.empty(self.programs, 1 + self.normed, self.side, device=like.device)
        self.scales = torch.empty(2, self.side, device=like.device)
        self.new: dict[int, Tensor] = {}
        """Gradients of parameters without a `.grad`, by the parameter's id."""
        self.square = torch.empty(
            (self.side, self.side, 3, 3), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
        )  # fmt: skip
        self.weights.pack[self.side, 9](*params.weights, self.square, **self._sizes())

    @property
    def input(self) -> Maps:
        """The channels of the block's input."""
        return self.maps[:, : self.features]

    def map_of(self, k: int) -> Maps:
        """The channels that convolution k writes, one of the first four."""
        return self.maps[:, self._inputs(k) : self._inputs(k + 1)]

    def load_input(self, x: Maps) -> None:
        """Copy the block's input into the buffer."""
        self.input.copy_(x)

    # forward

    def forward(self, k: int, target: Maps, *, outer: Maps | None = None) -> None:
        """Compute convolution k into `target`; the last one adds the residual, and that of three blocks to `outer`."""
        outputs = self._outputs(k)
        to = self.pre_norm[:, outputs] if self.normed else target
        residuals = 0 if k < CONVOLUTIONS - 1 else 1 if outer is None else 2
        ends = {
            "RESIDUALS": residuals,
            "RESIDUAL": self.params.residual,
            "SLOPE": self.params.slope,
        }
        inner, outer = self.maps, self.maps if outer is None else outer
        self.convolve.forward[(self.programs,)](
            self.maps, self.square[outputs], self.params.biases[k], to, inner, outer,
            self.sums[:, :, outputs], self.maps.shape[2],
            PITCH=self.side, TARGET_PITCH=to.stride(3), NORM=self.normed, **ends,
            **self._convolution(self._inputs(k), outputs, back=False),
        )  # fmt: skip
        if self.normed:
            norm = self.params.norms[k]
            self.norms.normalise[(self.norm_programs,)](
                to, self.sums[:, :, outputs], norm.weight, norm.bias, norm.running_mean, norm.running_var,
                norm.num_batches_tracked, self.scales[:, outputs], target, inner, outer, self.programs,
                TARGET_PITCH=target.stride(3), EPS=norm.eps, MOMENTUM=norm.momentum, **ends,
                **self._normalisation(outputs),
            )  # fmt: skip

    # backward

    def seed_gradient(self, gradient: Maps, *, part: float) -> None:
        """Store `part` of the gradient behind the block as that of its last convolution's output."""
        self.gradients = torch.empty_like(self.maps)
        last = self._outputs(CONVOLUTIONS - 1)
        self.convolve.seed_gradient[(self.programs,)](
            gradient, self.gradients[:, last], self.pre_norm[:, last], self.scales[:, last], self.sums[:, :, last],
            part, PITCH=self.side, OUTPUTS=self.features, NORM=self.normed, PIXELS=PIXELS,
        )  # fmt: skip

    def backward(self, k: int) -> None:
        """Compute the gradient of convolution k's output, before its LeakyReLU, from the convolutions after it."""
        outputs, start = self._outputs(k), self._inputs(k)
        self.convolve.backward[(self.programs,)](
            self.gradients[:, outputs.stop :], self.square[outputs.stop :, start:, 2:, 2:], self.maps[:, start:],
            self.pre_norm[:, outputs], self.scales[:, outputs], self.gradients[:, outputs], self.sums[:, :, outputs],
            self.maps.shape[2], PITCH=self.side, SLOPE=self.params.slope, NORM=self.normed,
            **self._convolution(self.side - outputs.stop, outputs, back=True),
        )  # fmt: skip

    def normalise_back(self, k: int) -> None:
        """Turn the gradient behind normalisation k into the one before it; nothing without normalisation."""
        if not self.normed:
            return
        outputs, norm = self._outputs(k), self.params.norms[k]
        self.norms.normalise_back[(self.norm_programs,)](
            self.gradients[:, outputs], self.pre_norm[:, outputs], self.scales[:, outputs], self.sums[:, :, outputs],
            norm.weight, self._grad(norm.weight), self._grad(norm.bias), self.programs,
            **self._normalisation(outputs),
        )  # fmt: skip

    def input_gradient(
        self,
        inner: Maps,
        outer: Maps | None,
        previous: BlockLaunches | None,
        *,
        keep: float,
        part: float,
    ) -> Maps:
        """The gradient of the input, plus `keep` times `inner` and all of `outer`; `part` of it seeds `previous`."""
        target = activation_buffer(self.maps, self.features)
        seeded = previous or self
        if previous is not None:
            previous.gradients = torch.empty_like(previous.maps)
        last = self._outputs(CONVOLUTIONS - 1)
        self.convolve.input_gradient[(self.programs,)](
            self.gradients, self.square[:, :, 2:, 2:], inner, inner if outer is None else outer, target,
            seeded.gradients[:, last], seeded.pre_norm[:, last], seeded.scales[:, last], seeded.sums[:, :, last],
            self.maps.shape[2], keep, part,
            PITCH=self.side, OUTER=outer is not None, SEEDS=previous is not None, NORM=self.normed,
            **self._convolution(self.side, slice(0, self.features), back=True),
        )  # fmt: skip
        return target

    def accumulate_grads(self) -> list[Tensor | None]:
        """Add the gradients of weights and biases; returns new ones in the order of the parameters, else None."""
        _, square, _ = torch.ops.aten.convolution_backward(
            self.gradients, self.maps, self.square, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )  # fmt: skip
        square = square.contiguous(memory_format=torch.channels_last)
        grads = [self._grad(each) for each in (*self.params.weights, *self.params.biases)]
        # a bias before batch normalisation has no gradient: the output does not depend on it
        self.weights.accumulate_grads[self.side, 9](
            square, self.sums, *grads, self.programs,
            ROWS=next_pow2(self.programs), BIASES=not self.normed, **self._sizes(),
        )  # fmt: skip
        return [self.new.get(id(each)) for each in self.params.parameters()]

    # arguments that launches have in common

    def _inputs(self, k: int) -> int:
        """Number of channels that convolution k reads; its own output follows them."""
        return self.features + k * self.growth

    def _outputs(self, k: int) -> slice:
        """Convolution k's channels among all outputs: in gradients, moments and rows of the square."""
        start = k * self.growth
        return slice(start, self.side if k == CONVOLUTIONS - 1 else start + self.growth)

    def _grad(self, parameter: Tensor) -> Tensor:
        """The tensor that a parameter's gradient is added to."""
        if parameter.grad is not None and parameter.requires_grad:
            return parameter.grad
        return self.new.setdefault(id(parameter), torch.zeros_like(parameter))

    def _sizes(self) -> dict[str, int]:
        return {"FEATURES": self.features, "GROWTH": self.growth, "WIDE": next_pow2(self.side)}

    def _convolution(self, inputs: int, outputs: slice, *, back: bool) -> dict[str, int]:
        count = outputs.stop - outputs.start
        return {
            "INPUTS": inputs,
            "OUTPUTS": count,
            "WIDTH": self.maps.shape[3],
            "INPUT_STRIDE": 9 * self.side if back else 1,
            "OUTPUT_STRIDE": 1 if back else 9 * self.side,
            "TAP": -self.side if back else self.side,
            "PIXELS": PIXELS,
            "STEP": STEP,
            "STAGES": STAGES,
            "num_warps": WARPS if reads_shared_operands(self.maps) and count <= 64 else MORE_WARPS,
        }

    def _normalisation(self, outputs: slice) -> dict[str, int]:
        return {
            "PITCH": self.side,
            "OUTPUTS": outputs.stop - outputs.start,
            "COUNT": PIXELS,
            "ROWS": next_pow2(self.programs),
            "PIXELS": NORM_PIXELS,
            "num_warps": NORM_WARPS,
        }


def activation_buffer(like: Tensor, channels: int) -> Maps:
    """An uninitialised buffer for maps side by side, channels last."""
    b, _, h, w = like.shape
    return torch.empty(
        (b, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )  # fmt: skip


def reads_shared_operands(x: Tensor) -> bool:
    """Whether matrix products on the tensor's GPU read operands from shared memory, as on H100 and B200."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def next_pow2(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
