"""Many small tensors as views of one flat tensor, so that a single kernel or collective serves all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNED = 16
"""Elements; each view starts at a multiple, which vectorised kernels need."""
PIGGYBACK = 32
"""Elements behind the gradients for other values of the same all-reduce."""


@dataclass
class Gradients:
    """The gradients of a network in one flat tensor, with room behind them for other values."""

    flat: Tensor
    """float32 [n + PIGGYBACK]; each parameter's `.grad` is a view of it with the parameter's layout."""

    @property
    def piggyback(self) -> Tensor:
        """The elements behind the gradients, [PIGGYBACK]."""
        return self.flat[-PIGGYBACK:]

    def norm(self) -> Tensor:
        """Euclidean norm of all gradients."""
        norm: Tensor = torch.linalg.vector_norm(self.flat[:-PIGGYBACK])
        return norm


def flatten_grads_(parameters: Iterable[nn.Parameter]) -> Gradients:
    """Make the gradients of `parameters` views of one flat tensor of zeros.

    Backward passes add to an existing gradient, so the views persist until `.grad` is set to None: clear
    them with `flat.zero_()`.
    """
    members = list(parameters)
    flat = torch.zeros(_total_size(members) + PIGGYBACK, device=members[0].device)
    for parameter, view in zip(members, views(members, flat), strict=True):
        parameter.grad = view
    return Gradients(flat)


@torch.no_grad()  # or the flat tensor would keep a graph, with streams that no capture may touch
def flatten_params_(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Move tensors into one flat tensor per type and make them views of it; returns the flat tensors."""
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    flattened = []
    for dtype, members in by_type.items():
        flat = torch.zeros(_total_size(members), dtype=dtype, device=members[0].device)
        for tensor, view in zip(members, views(members, flat), strict=True):
            tensor.data = view.copy_(tensor)
        flattened.append(flat)
    return flattened


def as_one_parameter(params_flat: Tensor, gradients: Gradients) -> nn.Parameter:
    """Flat parameters and their flat gradients as a single parameter, for an optimiser."""
    parameter = nn.Parameter(params_flat)
    parameter.grad = gradients.flat[:-PIGGYBACK]
    return parameter


def bump_versions(network: nn.Module) -> None:
    """Mark a network's parameters as changed for torch, after their flat tensor was written."""
    torch.autograd.graph.increment_version(list(network.parameters()))


def views(tensors: Sequence[Tensor], flat: Tensor) -> Iterator[Tensor]:
    """The part of a flat tensor that stands for each of `tensors`, with the same layout."""
    start = 0
    for tensor in tensors:
        yield flat[start:].as_strided(tensor.shape, tensor.stride(), flat.storage_offset() + start)
        start += _aligned_size(tensor)


def _total_size(tensors: Sequence[Tensor]) -> int:
    return sum(map(_aligned_size, tensors))


def _aligned_size(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNED) * ALIGNED
