"""Spectral normalisation (Miyato et al., arXiv:1802.05957): torch's, with its gradient in three operations.

torch differentiates W / sigma term by term, in ten passes over a weight and its gradient.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

Layer = TypeVar("Layer", bound=nn.Module)


def spectral_norm(layer: Layer) -> Layer:
    """Divide a layer's weight by its largest singular value; names and vectors are those of torch's function."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight))
    return layer


class SpectralNorm(_SpectralNorm):
    """In training mode each pass is one power iteration; in evaluation mode the vectors stand still."""

    def forward(self, weight: Tensor) -> Tensor:
        """W / sigma."""
        matrix = weight.flatten(1)
        if self.training:
            self._power_method(matrix, 1)
        found: Tensor = _Normalised.apply(matrix, self._u.clone(), self._v.clone())  # type: ignore[no-untyped-call]  # as torch has it
        normal = found.view(weight.shape)
        if weight.is_contiguous():
            return normal
        return normal.contiguous(memory_format=torch.channels_last)


class _Normalised(torch.autograd.Function):
    """W / sigma with sigma = u W v, where u and v count as constants.

    For the gradient G of W / sigma, that of W is (G - <G, W> / sigma u v) / sigma; R1 differentiates it again.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        matrix: Tensor,
        u: Tensor,
        v: Tensor,
    ) -> Tensor:
        """The matrix [outputs inputs], as its singular vectors [outputs] and [inputs] normalise it."""
        sigma = _sigma(matrix, u, v)
        ctx.save_for_backward(matrix, u, v)
        ctx.sigma = sigma.detach()
        return matrix / sigma

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor, None, None]:
        """In operations that can be differentiated again."""
        matrix, u, v = ctx.saved_tensors
        sigma = _sigma(matrix, u, v) if torch.is_grad_enabled() else ctx.sigma
        along = torch.dot(gradients[0].flatten(), matrix.flatten()) / sigma
        return torch.addr(gradients[0], u, -along * v) / sigma, None, None


def _sigma(matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.dot(u, torch.mv(matrix, v))
