"""Batch normalisation over the patches of all ranks, on any device.

torch's own `SyncBatchNorm` supports no CPU, on which the tests run. Statistics are merged by Chan et
al. (1983, eq. 1.5) from the mean and variance of each rank, in rank order, so that all ranks compute
the same bits. All ranks must hold the same number of patches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from trainer.distributed.process_group import wrap_collective_errors

Maps = Float[Tensor, "b c h w"]
_REDUCED_DIMS = (0, 2, 3)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with training statistics of the global batch."""

    def forward(self, input: Maps) -> Maps:  # noqa: A002  the name of nn.BatchNorm2d
        """Normalise; in evaluation mode, as the plain layer does."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        normalised, mean, variance, count = _Normalise.apply(input.float(), self.eps)  # type: ignore[no-untyped-call]  # as torch has it
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scaled: Tensor = normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return scaled.to(input.dtype)


def sync_batch_norm_(network: nn.Module) -> None:
    """Make each batch normalisation use the patches of all ranks, in place; weights do not change."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) per channel over all ranks."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        eps: float,
    ) -> tuple[Maps, Float[Tensor, " c"], Float[Tensor, " c"], int]:
        """Return normalised maps, mean, biased variance, and the number of values per channel."""
        variance, mean = torch.var_mean(x, _REDUCED_DIMS, correction=0)
        local = torch.stack((mean, variance))
        world_size = dist.get_world_size()
        parts = [torch.empty_like(local) for _ in range(world_size)]
        with wrap_collective_errors():
            dist.all_gather(parts, local)
        stacked = torch.stack(parts)  # [ranks 2 c]
        mean = stacked[:, 0].mean(0)
        variance = stacked[:, 1].mean(0) + (stacked[:, 0] - mean).square().mean(0)
        scale = torch.rsqrt(variance + eps)
        normalised = (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        ctx.save_for_backward(normalised, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normalised, mean, variance, world_size * x.numel() // x.shape[1]

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Maps, None]:
        """Return the gradient of the plain layer, with both of its means over all ranks."""
        normalised, scale = ctx.saved_tensors
        gradient = gradients[0]
        means = torch.stack(
            (gradient.mean(_REDUCED_DIMS), (gradient * normalised).mean(_REDUCED_DIMS))
        )
        with wrap_collective_errors():
            dist.all_reduce(means)
        mean, projection = (means / dist.get_world_size()).unbind()
        centred = gradient - mean.view(1, -1, 1, 1) - normalised * projection.view(1, -1, 1, 1)
        return centred * scale.view(1, -1, 1, 1), None
