"""Acceleration put on networks from outside: fused forms of their layers, weights in bf16, compiled blocks.

A module gets its fused form by another `__class__`, so weights, names and optimisers stay in place. Each fused form
computes the function of the plain one, and falls back to it for maps that the kernels do not support.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config.schema import SpeedConfig
from trainer.kernels import bias_leaky_relu, dense_block
from trainer.kernels.dense_block_launches import BlockParams
from trainer.networks.feature_extractors import VGGFeatures
from trainer.networks.layers import SLOPE, ConvLeakyReLU, ConvPixelShuffle, Maps
from trainer.networks.rrdb import RESIDUAL, RRDB, DenseBlock, RRDBNet
from trainer.training.state import TrainState

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def apply(state: TrainState, speed: SpeedConfig) -> None:
    """Accelerate the training steps of a state by resolved settings; the EMA, which is validated, stays plain."""
    torch.backends.cudnn.benchmark = speed.convolutions == "fastest"
    networks = [state.generator]
    if state.adversary is not None:
        networks += [state.adversary.discriminator, state.adversary.content]
    if speed.dense == "fused":
        for network in networks:
            fuse(network)
    if speed.compile == "blocks":
        compile_blocks(state.generator)
    if state.adversary is not None and speed.content == "bf16":
        keep_weights_in_bf16(state.adversary.content)
    if speed.allocator == "keep":
        keep_freed_memory()


def fuse(network: nn.Module) -> None:
    """Give the layers of a network their fused forms."""
    for module in list(network.modules()):
        if isinstance(module, RRDBNet):
            module.body.__class__ = FusedBody
        elif isinstance(module, VGGFeatures):
            _fuse_relus(module)
        elif isinstance(module, FusedConvLeakyReLU | FusedConvPixelShuffle):
            pass
        elif isinstance(module, ConvPixelShuffle):
            module.__class__ = FusedConvPixelShuffle
        elif isinstance(module, ConvLeakyReLU):
            # a class of its own for each: spectral normalisation has put the weight into a class, too
            kind = type(module)
            module.__class__ = type(f"Fused{kind.__name__}", (FusedConvLeakyReLU, kind), {})


def compile_blocks(network: nn.Module) -> None:
    """torch.compile each RRDB; all of them share one compilation."""
    for module in network.modules():
        if isinstance(module, RRDB):
            module.compile()


def keep_weights_in_bf16(network: nn.Module) -> None:
    """Convert frozen convolutions once, to the bits that autocast would make of them in every step."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)  # the normalisation of the input stays in float32


class FusedBody(nn.Sequential):
    """The residual-in-residual dense blocks of an RRDBNet as one autograd function, in training mode."""

    def forward(self, input: Maps) -> Maps:  # noqa: A002  the name of nn.Sequential
        """Falls back to the modules in evaluation mode and for maps that the kernels do not support."""
        if self.training:
            blocks = [block_params(each) for each in self.modules() if isinstance(each, DenseBlock)]
            if dense_block.supports(input, blocks[0]):
                return dense_block.run_blocks_accumulating_grads(input, blocks)
        out: Tensor = super().forward(input)  # type: ignore[no-untyped-call]  # untyped in torch
        return out


class FusedConvLeakyReLU(ConvLeakyReLU):
    """A convolution with bias and LeakyReLU in one pass."""

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """Falls back to the plain layer without bias or LeakyReLU, and for maps that the kernel does not support."""
        bias = self.bias
        if (
            slope == 1
            or bias is None
            or not bias_leaky_relu.supports(input, channels=self.out_channels)
        ):
            return super().forward(input, slope)
        x = self._conv_forward(input, self.weight, None)
        return bias_leaky_relu.add_bias_leaky_relu(x, bias, slope)


class FusedConvPixelShuffle(ConvPixelShuffle):
    """A sub-pixel convolution whose output pixels have their channels side by side from the start.

    torch's pixel shuffle moves every value of channels-last maps on its own, 2 ns each in the backward pass.
    """

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """Falls back to the plain layer for maps that the kernel does not support."""
        bias, count = self.bias, self.out_channels // self.factor**2
        if bias is None or not bias_leaky_relu.supports(input, channels=count):
            return super().forward(input, slope)
        by_phase = self.weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
        x = F.conv2d(input, by_phase, padding=1)
        return bias_leaky_relu.add_bias_leaky_relu_shuffle(
            x, bias.view(count, -1).T.flatten(), slope, self.factor
        )


class FusedConvReLU(nn.Conv2d):
    """A convolution with bias and the ReLU behind it in one pass."""

    def forward(self, input: Maps) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """Falls back to the plain layers for maps that the kernel does not support."""
        bias = self.bias
        if bias is None or not bias_leaky_relu.supports(input, channels=self.out_channels):
            return F.relu(super().forward(input))
        return bias_leaky_relu.add_bias_leaky_relu(
            self._conv_forward(input, self.weight, None), bias, 0.0
        )


def _fuse_relus(network: VGGFeatures) -> None:
    """Move each ReLU into the convolution before it, where no map is taken between the two."""
    layers = list(network.features)
    for number, (layer, following) in enumerate(itertools.pairwise(layers)):
        convolves = isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU)
        if convolves and number not in network.taps:
            layer.__class__ = FusedConvReLU
            following.__class__ = nn.Identity


def block_params(block: DenseBlock) -> BlockParams:
    """The parameters of a dense block as the kernels take them."""
    convs = (block.conv1, block.conv2, block.conv3, block.conv4, block.conv5)
    norms = (block.norm1, block.norm2, block.norm3, block.norm4, block.norm5)
    return BlockParams(
        weights=[conv.weight for conv in convs],
        biases=[conv.bias for conv in convs if conv.bias is not None],
        norms=[norm for norm in norms if isinstance(norm, nn.BatchNorm2d)],
        slope=SLOPE,
        residual=RESIDUAL,
    )


def keep_freed_memory() -> None:
    """Let glibc keep memory that tensors free; otherwise every step allocates its buffers page by page again.

    Without it, a step of the two-block RRDBNet, batch 4, has 17 000 page faults (docs/internals/log.md).
    """
    _set_allocator(mmap=2**30, trim=2**31 - 1)


def return_freed_memory() -> None:
    """Set the thresholds that glibc itself reaches once a program has freed large blocks (mallopt(3))."""
    _set_allocator(mmap=2**25, trim=2**26)


def _set_allocator(*, mmap: int, trim: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another libc has another allocator
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mmap)
        libc.mallopt(_M_TRIM_THRESHOLD, trim)
