"""A 4x4 Winograd convolution of stride 2, with its gradients, around torch's products (`tiles_4x4.c` says how)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from trainer import native
from trainer.networks import planes
from trainer.networks.chains import kept
from trainer.networks.planes import HALVING, Columns, Kernels, Maps, columns, library

Planes = BFloat16[Tensor, "places tiles_and_1 columns"]


class Halved(torch.autograd.Function):
    """A weight [outputs inputs 4 4] of stride 2, a bias [outputs] or None, and a LeakyReLU."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Tensor,
        slope: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """The maps are kept, and the kernels in the tiles' domain."""
        x = planes.last_inside(x)
        kernels = kept(weight, "halving", lambda: _kernels_in(weight))
        out = planes.empty(x, len(weight), HALVING.stride)
        for some in HALVING.few_at_once(x):
            products = torch.bmm(_tiles_in(x[some]), kernels.mT)
            _tiles_out(products, bias, slope, out[some])
        ctx.save_for_backward(x, out, kernels)
        ctx.slope, ctx.biased = slope, bias is not None
        return out

    @staticmethod
    @native.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Through the adjoints of all steps."""
        x, out, kernels = ctx.saved_tensors
        grads = planes.through(gradients[0], out, ctx.slope)
        learnt = any(ctx.needs_input_grad[2:])
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weight = torch.zeros(grads.shape[1], x.shape[1], 4, 4)
        bias = torch.zeros(grads.shape[1])
        for some in HALVING.few_at_once(x):
            cut = _grads_in(grads[some])
            if to_x is not None:
                _grads_out(torch.bmm(cut, kernels), to_x[some])
            if learnt:
                _add_kernels(torch.bmm(cut.mT, _tiles_in(x[some])), weight)
                bias += cut[HALVING.whole].sum(0, dtype=torch.float32)
        if not learnt:
            return to_x, None, None, None
        return to_x, None, weight, bias if ctx.biased else None


def _kernels_in(weight: Tensor) -> Kernels:
    """A weight [outputs inputs 4 4] in the tiles' domain."""
    outputs, inputs = weight.shape[:2]
    to = torch.empty(HALVING.places, outputs, HALVING.phases * inputs, dtype=torch.bfloat16)
    flat = weight.detach().float().contiguous()
    threads = torch.get_num_threads()
    library(HALVING).kernels_in(flat.data_ptr(), to.data_ptr(), outputs, inputs, threads)
    return to


def _add_kernels(gradient: Kernels, to: Tensor) -> None:
    """Backward through `_kernels_in`, added to the gradient of a weight in float32."""
    threads = torch.get_num_threads()
    library(HALVING).kernels_back(gradient.data_ptr(), to.data_ptr(), *to.shape[:2], threads)


def _tiles_in(x: Maps) -> Planes:
    """Cut maps into tiles."""
    to = _room(HALVING.tiles(x), x.shape[1] * HALVING.phases)
    library(HALVING).tiles_in(columns(x), _rows(to), *native.pictures(x))
    return to


def _grads_in(gradient: Maps) -> Planes:
    """Backward through the putting together of tiles."""
    images, outputs, height, width = gradient.shape
    to = _room(images * height * width // 4, outputs)
    library(HALVING).grads_in(columns(gradient), _rows(to), *native.pictures(gradient))
    return to


def _tiles_out(products: Planes, bias: Tensor | None, slope: float, out: Maps) -> None:
    """Put `out` together, add the bias [c], and apply LeakyReLU."""
    base = None if bias is None else bias.float().contiguous()
    at = None if base is None else base.data_ptr()
    library(HALVING).tiles_out(
        products.data_ptr(), at, slope, out.data_ptr(), *native.pictures(out)
    )


def _grads_out(products: Planes, out: Maps) -> None:
    """Backward through `_tiles_in`."""
    library(HALVING).grads_out(products.data_ptr(), out.data_ptr(), *native.pictures(out))


def _room(tiles: int, columns: int) -> Planes:
    return torch.empty(HALVING.places, tiles + 1, columns, dtype=torch.bfloat16)


def _rows(planes: Planes) -> Columns:
    return Columns(planes.data_ptr(), planes.shape[2])
