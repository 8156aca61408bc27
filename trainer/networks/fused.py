"""A whole chain of dense blocks on a GPU, in kernels of our own, and its gradients by hand.

All maps of a block lie side by side in one picture of 192 channels, and each convolution reads a part of every
pixel and writes another, through its LeakyReLU: there are no concatenations and no passes in between. The
backward pass is the same from the last map to the first over a picture of gradients: what a map's convolution
gets from all that read the map is one convolution again (`block_pass` has a block's part).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import UsrganError
from trainer.kernels.autograd import once_differentiable
from trainer.networks.block_pass import (
    CONVOLUTIONS,
    MOST_MOMENTS,
    NORM_PIXELS,
    PIXELS,
    Block,
    BlockPass,
    Maps,
    above,
    picture,
)
from trainer.networks.constants import RESIDUAL

BLOCKS = 3
"""Of one residual of residuals."""


def missing(device: torch.device) -> str:
    """Why a GPU, or this machine, cannot have the kernels; empty if it can."""
    if torch.version.hip is not None:
        return "they have not been tried on AMD's GPUs"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "they are for GPUs from Ampere on"
    if importlib.util.find_spec("triton") is None:
        return "Triton, which compiles kernels for GPUs, is not installed"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "there is no C compiler, which Triton needs"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers, which Triton needs, are not installed (python3-dev)"
    return ""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What to do about kernels that do not compile, in place of the compiler's words alone.

    Raises:
        UsrganError: Triton, or the compiler that it started, failed inside.
    """
    try:
        yield
    except Exception as error:
        triton = type(error).__module__.startswith("triton")
        if not triton and not isinstance(error, subprocess.CalledProcessError):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsrganError(
            f"speed.dense: kernels for this GPU do not compile: {said}; use --set speed.dense=plain"
        ) from error


def fits(x: Tensor, block: Block) -> bool:
    """Whether maps, and blocks like this one, are what the kernels are for."""
    b, features, height, width = x.shape
    growth = len(block.weights[0])
    powers = all(each in (32, 64, 128) for each in (features, growth))
    rows = width & (width - 1) == 0 and width <= PIXELS and height * width % NORM_PIXELS == 0
    small = b * height * width * (features + 4 * growth) < 2**31
    half = x.dtype in (torch.bfloat16, torch.float16) and block.weights[0].dtype == torch.float32
    laid = all(each.is_contiguous(memory_format=torch.channels_last) for each in block.weights)
    norms = all(
        type(norm) is nn.BatchNorm2d and norm.training and norm.momentum for norm in block.norms
    )
    # each program that normalises reads the moments of all
    moments = above(b * height * width // PIXELS) * max(features, growth)
    few = not block.norms or moments <= MOST_MOMENTS
    return x.is_cuda and half and powers and rows and small and laid and norms and few


def through(x: Maps, blocks: Sequence[Block]) -> Maps:
    """Maps [B features h w] through dense blocks in training mode, three to a residual of residuals.

    The gradients of parameters are added to their `.grad` at once, where there is one, and autograd sees none:
    this is for `backward()`, and `torch.autograd.grad` would do so, too.
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
        passes = [BlockPass(block, x) for block in blocks]
        passes[0].take(x)
        out = picture(x, x.shape[1])
        for number, each in enumerate(passes):
            for k in range(CONVOLUTIONS - 1):
                each.forward(k, each.map_of(k))
            target = out if number == len(passes) - 1 else passes[number + 1].given
            before = passes[number - 2].maps if _closes(number) else None
            each.forward(CONVOLUTIONS - 1, target, before=before)
        ctx.passes = passes
        ctx.save_for_backward(*parameters)  # which must not change before the backward pass
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """From the last block to the first."""
        _ = ctx.saved_tensors
        passes: list[BlockPass] = list(ctx.passes)
        if not passes:
            raise RuntimeError("fused blocks can be gone back through once only")
        ctx.passes = []  # what a block kept goes as soon as its gradients are there
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        passes[-1].enter(gradient, part=_entering(len(passes) - 1))
        found: list[Tensor | None] = []
        outer = gradient  # of what three blocks make
        for number in reversed(range(len(passes))):
            each = passes.pop()
            each.normalise_back(CONVOLUTIONS - 1)
            for k in reversed(range(CONVOLUTIONS - 1)):
                each.backward(k)
                each.normalise_back(k)
            gradient = each.backward_out(
                gradient,
                outer if _opens(number) else None,
                passes[-1] if passes else None,
                keep=RESIDUAL if _closes(number) else 1.0,
                part=_entering(number - 1),
            )
            found = [*each.spread(), *found]
            if _opens(number):
                outer = gradient
        return gradient, None, *found


def _opens(number: int) -> bool:
    """Whether a block is the first of a residual of residuals."""
    return number % BLOCKS == 0


def _closes(number: int) -> bool:
    """Whether it is the last."""
    return number % BLOCKS == BLOCKS - 1


def _entering(number: int) -> float:
    """The part of the gradient behind a block that enters its last convolution."""
    return RESIDUAL**2 if _closes(number) else RESIDUAL
