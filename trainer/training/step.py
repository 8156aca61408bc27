"""A training step: gradients, their mean over all ranks, and an update that is whole or not at all.

A step counts as bad if a loss or a gradient of any rank is not finite. That shows on every rank alike
in what the ranks reduce anyway, so nobody has to be asked; and the decision stays on the device, where
it turns the update into nothing, so that no rank waits for it (`trainer.training.nonfinite` reads it later).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.config.schema import Config
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.training import diagnostics
from trainer.training.flat_buffers import SPARE, Gradients, changed
from trainer.training.objectives import STAGE_OBJECTIVES, Images
from trainer.training.optim import copy_buffers, take_step, update_average
from trainer.training.state import COUNTED, TrainState, optimizers, trained

STOP = "stop"
"""Stands among the signs of a step for the wish of a rank to stop."""


@dataclass(frozen=True)
class Outcome:
    """What a step found, on the device."""

    losses: dict[str, Tensor]
    """Means over the global batch."""
    taken: Float[Tensor, ""]
    """1, or 0 where nothing was updated."""
    names: tuple[str, ...]
    signs: Bool[Tensor, " n"]
    """For each name, whether that loss or gradient is not finite; `STOP`: whether a rank wants to stop."""


@torch.no_grad()
def take_back(buffers: list[Tensor], before: list[Tensor], *, taken: Float[Tensor, ""]) -> None:
    """Put flat buffers back to what they were, unless the step was taken."""
    for now, then in zip(buffers, before, strict=True):
        now.copy_(torch.where(taken > 0, now, then))


def train_step(
    state: TrainState,
    config: Config,
    lr: Images,
    hr: Images,
    bf16: bool,
    *,
    ranks: ProcessGroup = SINGLE_PROCESS,
    stop: bool | Tensor = False,
) -> Outcome:
    """One step on this rank's share of a global batch; the same update on every rank.

    Networks, buffers, optimisers and average are left bit for bit as they were if the step is bad.
    """
    before = [buffer.clone() for buffer in state.buffers]
    gradients = {"generator": state.gradients}
    if state.adversary is not None:
        gradients["discriminator"] = state.adversary.gradients
    for each in gradients.values():
        each.flat.zero_()
    seen: dict[str, Tensor] | None = {} if looking(state, config) else None
    losses = STAGE_OBJECTIVES[state.stage](state, config, lr, hr, bf16, ranks=ranks, seen=seen)

    # the mean over the ranks, losses and the wish to stop along with the gradients
    names = list(losses)
    assert len(names) < SPARE
    with torch.no_grad():
        wish = stop if isinstance(stop, Tensor) else torch.full((), float(stop), device=lr.device)
        told = torch.stack([*losses.values(), wish])
        state.gradients.spare[: len(told)] = told
    for each in gradients.values():
        ranks.all_reduce_mean_(each.flat)
    *means, wish = state.gradients.spare[: len(told)].clone().unbind()

    if state.scaler is not None:
        for optimizer in optimizers(state).values():
            state.scaler.unscale_(optimizer)
    if seen is not None:
        norms = {f"grad_norm_{name}": each.norm() for name, each in gradients.items()}
        diagnostics.add_diagnostics(state.telemetry, seen | norms)

    # all of it or nothing
    signs = torch.stack(
        [wish > 0, *(~mean.isfinite() for mean in means), *map(_odd, gradients.values())]
    )
    skip = signs[1:].any().float()
    if state.scaler is not None:
        state.scaler.update()
        signs = signs[: len(told)]  # fp16's gradients overflow now and then: no bad step
    for name, optimizer in optimizers(state).items():
        take_step(optimizer, skip=skip)
        changed(trained(state)[name])
    take_back(state.buffers, before, taken=1 - skip)
    return Outcome(
        losses=dict(zip(names, means, strict=True)),
        taken=1 - skip,
        names=(STOP, *names, *(f"gradient of the {name}" for name in gradients))[: len(signs)],
        signs=signs,
    )


def count_step(state: TrainState, config: Config, outcome: Outcome) -> None:
    """Move position, average and sums of losses on by a step; a bad one counts as seen, no more."""
    state.patches_seen += config.batch_size
    good = outcome.taken > 0
    for name, value in (outcome.losses | {COUNTED: outcome.taken}).items():
        added = torch.where(good, value, torch.zeros_like(value))
        state.losses[name] = state.losses[name] + added if name in state.losses else added
    if state.average is not None and state.averaged is not None:
        copy_buffers(state.average, state.generator)
        update_average(
            [state.averaged],
            [state.weights],
            halflife=config.ema.halflife_patches,
            batch_size=config.batch_size,
            patches_seen=state.patches_seen,
            taken=outcome.taken,
        )
        changed(state.average)


def looking(state: TrainState, config: Config) -> bool:
    """Whether telemetry looks into the step that comes next."""
    return diagnostics.is_due(
        patches_seen=state.patches_seen,
        batch_size=config.batch_size,
        epoch=config.iterations_per_epoch * config.batch_size,
        every=config.telemetry.every_patches,
    )


def _odd(gradients: Gradients) -> Bool[Tensor, ""]:
    """Whether a gradient is not finite anywhere, which shows in the sum; so does one beyond all bounds."""
    return ~gradients.flat[:-SPARE].sum().isfinite()
