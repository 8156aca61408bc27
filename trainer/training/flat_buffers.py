"""Many small tensors as views of one flat one: a single kernel or collective then serves them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNED = 16
"""Elements; each view begins at a multiple of it, which vectorised kernels want."""
SPARE = 32
"""Places behind the gradients, for what travels with them."""


@dataclass
class Gradients:
    """The gradients of a network in one flat tensor, with a few spare places behind them."""

    flat: Tensor
    """float32 [n + SPARE]; each parameter's `.grad` is a view of it, laid out as the parameter is."""

    @property
    def spare(self) -> Tensor:
        """The places behind the gradients, [SPARE]."""
        return self.flat[-SPARE:]

    def norm(self) -> Tensor:
        """Of all gradients."""
        found: Tensor = torch.linalg.vector_norm(self.flat[:-SPARE])
        return found


def gather_gradients(parameters: Iterable[nn.Parameter]) -> Gradients:
    """Make the gradients of `parameters` views of one flat tensor of zeros.

    Backward passes add to a gradient that is there, so the views stay as long as nobody sets
    `.grad` to None: clear them with `flat.zero_()`.
    """
    wanted = list(parameters)
    flat = torch.zeros(_size(wanted) + SPARE, device=wanted[0].device)
    for parameter, view in zip(wanted, views(wanted, flat), strict=True):
        parameter.grad = view
    return Gradients(flat)


@torch.no_grad()  # or the flat tensor would hold on to a graph, with streams that no capture may touch
def pack(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Move tensors into one flat tensor per type, of which they become views; returns the flat ones."""
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    packed = []
    for dtype, members in by_type.items():
        flat = torch.zeros(_size(members), dtype=dtype, device=members[0].device)
        for tensor, view in zip(members, views(members, flat), strict=True):
            tensor.data = view.copy_(tensor)
        packed.append(flat)
    return packed


def as_one(weights: Tensor, gradients: Gradients) -> nn.Parameter:
    """Packed parameters and their gathered gradients as a single parameter, for an optimiser."""
    one = nn.Parameter(weights)
    one.grad = gradients.flat[:-SPARE]
    return one


def changed(network: nn.Module) -> None:
    """Tell torch, and who keeps what was made of weights, that a network's packed parameters changed."""
    torch.autograd.graph.increment_version(list(network.parameters()))


def views(tensors: Sequence[Tensor], flat: Tensor) -> Iterator[Tensor]:
    """The part of a flat tensor that stands for each of `tensors`, laid out as that is."""
    start = 0
    for tensor in tensors:
        yield flat[start:].as_strided(tensor.shape, tensor.stride(), flat.storage_offset() + start)
        start += _rounded(tensor.numel())


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(_rounded(tensor.numel()) for tensor in tensors)


def _rounded(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED
