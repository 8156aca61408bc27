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
        if self.training:
            self._power_method(weight.flatten(1), 1)
        out: Tensor = _Normalised.apply(weight, self._u.clone(), self._v.clone())  # type: ignore[no-untyped-call]  # as torch has it
        return out


class _Normalised(torch.autograd.Function):
    """W / sigma with sigma = u W v, where u and v count as constants.

    For the gradient G of W / sigma, that of W is (G - <G, W> / sigma u v) / sigma; R1 differentiates it again.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        weight: Tensor,
        u: Tensor,
        v: Tensor,
    ) -> Tensor:
        """The weight [outputs ...], as its singular vectors [outputs] and [the rest] normalise it."""
        ctx.save_for_backward(weight, u, v)
        return weight / _sigma(weight, u, v)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor, None, None]:
        """In operations that can be differentiated again."""
        weight, u, v = ctx.saved_tensors
        gradient, sigma = gradients[0].flatten(1), _sigma(weight, u, v)
        along = torch.dot(gradient.flatten(), weight.flatten()) / sigma
        return (torch.addr(gradient, u, -along * v) / sigma).view_as(weight), None, None


def _sigma(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.dot(u, torch.mv(weight.flatten(1), v))
