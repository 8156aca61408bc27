"""Batch normalisation over the patches of all ranks, on any device.

torch's own `SyncBatchNorm` refuses the CPU, where this has to be tested. Statistics are merged by
Chan et al. (1983, eq. 1.5) from each rank's mean and squared deviations, in the order of the ranks,
so that every rank computes the same bits. Only for ranks that hold equally many patches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from trainer.distributed.process_group import wrap_collective_errors

Maps = Float[Tensor, "b c h w"]
_OVER = (0, 2, 3)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the global batch."""

    def forward(self, input: Maps) -> Maps:  # noqa: A002  the name of nn.BatchNorm2d
        """Normalise; in evaluation mode exactly as the plain layer does."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        normal, mean, variance, count = _Normalise.apply(input.float(), self.eps)  # type: ignore[no-untyped-call]  # as torch has it
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scaled: Tensor = normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return scaled.to(input.dtype)


def synchronise(network: nn.Module) -> None:
    """Let each batch normalisation of a network see the patches of all ranks; weights stay in place."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) per channel over all ranks, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        eps: float,
    ) -> tuple[Maps, Float[Tensor, " c"], Float[Tensor, " c"], int]:
        """Also returns mean, biased variance and the number of values per channel."""
        variance, mean = torch.var_mean(x, _OVER, correction=0)
        ours = torch.stack((mean, variance))
        world = dist.get_world_size()
        theirs = [torch.empty_like(ours) for _ in range(world)]
        with wrap_collective_errors():
            dist.all_gather(theirs, ours)
        stacked = torch.stack(theirs)  # [ranks 2 c]
        mean = stacked[:, 0].mean(0)
        variance = stacked[:, 1].mean(0) + (stacked[:, 0] - mean).square().mean(0)
        scale = torch.rsqrt(variance + eps)
        normal = (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        ctx.save_for_backward(normal, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normal, mean, variance, world * x.numel() // x.shape[1]

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Maps, None]:
        """The plain layer's formula with its two means taken over all ranks."""
        normal, scale = ctx.saved_tensors
        gradient = gradients[0]
        means = torch.stack((gradient.mean(_OVER), (gradient * normal).mean(_OVER)))
        with wrap_collective_errors():
            dist.all_reduce(means)
        plain, along = (means / dist.get_world_size()).unbind()
        spread = gradient - plain.view(1, -1, 1, 1) - normal * along.view(1, -1, 1, 1)
        return spread * scale.view(1, -1, 1, 1), None
