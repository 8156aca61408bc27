"""Optimisers, learning-rate schedule and weight averaging: pure functions of the patches seen."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.config.schema import OptimConfig


def learning_rate(
    config: OptimConfig, base: float, *, patches_seen: int, patches_total: int
) -> float:
    """The learning rate at a point of the stage."""
    if patches_seen < config.warmup_patches:
        return base * patches_seen / config.warmup_patches
    if config.schedule == "constant":
        return base
    if config.schedule == "multistep":
        passed = sum(patches_seen >= part * patches_total for part in config.milestones)
        return float(base * config.decay**passed)
    left = max(patches_total - config.warmup_patches, 1)
    done = min((patches_seen - config.warmup_patches) / left, 1.0)
    return base * 0.5 * (1 + math.cos(math.pi * done))


def build_adam(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    """Return Adam; the loop sets the learning rate before each step.

    It is the fused one, because only that one can skip a step by a flag on the device (`take_step`).
    On a GPU the learning rate is a tensor there, so that a CUDA graph reads it.
    """
    wanted, betas = list(parameters), (config.beta1, config.beta2)
    rate = torch.tensor(config.lr, device=wanted[0].device) if wanted[0].is_cuda else config.lr
    return torch.optim.Adam(wanted, lr=rate, betas=betas, fused=True)


def take_step(optimizer: torch.optim.Adam, *, skip: Float[Tensor, ""]) -> None:
    """Update the parameters, or change nothing if `skip` is 1; the host does not wait for its value."""
    capturing = skip.is_cuda and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        group["capturable"] = capturing  # torch warns of a step that could be captured and is not
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # what GradScaler sets, too
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all parameter groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def update_ema(
    ema: list[Tensor],
    live: list[Tensor],
    *,
    halflife: float,
    batch_size: int,
    patches_seen: int,
    applied: Float[Tensor, ""] | float = 1.0,
) -> None:
    """Move `ema` towards `live` by one step's share, if the step was `applied` (1, else 0).

    The half-life grows with the patches seen until it reaches its full length, so that an early
    EMA is not dominated by the random start (EDM, arXiv:2206.00364, ramp-up).
    """
    halflife = min(halflife, max(patches_seen * 0.1, 1e-8))
    keep = 0.5 ** (batch_size / halflife)
    towards = torch._foreach_sub(live, ema)
    torch._foreach_mul_(towards, applied * (1 - keep))
    torch._foreach_add_(ema, towards)


@torch.no_grad()
def copy_buffers(ema: nn.Module, live: nn.Module) -> None:
    """Copy the statistics of batch normalisation: averaged weights with stale statistics are worse than none."""
    for target, source in zip(ema.buffers(), live.buffers(), strict=True):
        target.copy_(source)
