"""A training step: gradients, their mean over all ranks, and an update that is applied in full or not at all.

A step is bad if a loss or a gradient of any rank is not finite. Every rank sees that in the values that are
reduced anyway, so no extra exchange is needed. The decision stays on the device, where it turns the update into
nothing, so no rank waits for it (`trainer.training.nonfinite` reads it later).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.config.schema import Config
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.training.diagnostics import add_diagnostics, is_due
from trainer.training.flat_buffers import PIGGYBACK, Gradients, bump_versions
from trainer.training.objectives import STAGE_OBJECTIVES, Images
from trainer.training.optim import copy_buffers, take_step, update_ema
from trainer.training.state import COUNTED, TrainState, optimizers, trained

STOP = "stop"
"""Flag name: some rank requested a graceful stop."""


@dataclass(frozen=True)
class StepReport:
    """Scalars that the ranks exchange in each step, in the all-reduce of the generator's gradients."""

    losses: dict[str, Tensor]
    """Unweighted losses of this rank's patches; after the all-reduce means over the global batch."""
    stop_flag: Tensor
    """Above 0: a stop was requested."""

    def pack(self, piggyback: Tensor) -> None:
        """Write the scalars behind the gradients, before the all-reduce."""
        scalars = torch.stack([*self.losses.values(), self.stop_flag])
        assert len(scalars) <= len(piggyback)
        piggyback[: len(scalars)] = scalars

    def unpack(self, piggyback: Tensor) -> StepReport:
        """Read the scalars of a report with the same losses, after the all-reduce."""
        *losses, stop_flag = piggyback[: len(self.losses) + 1].clone().unbind()
        return StepReport(dict(zip(self.losses, losses, strict=True)), stop_flag)


@dataclass(frozen=True)
class Outcome:
    """The result of a step, on the device."""

    losses: dict[str, Tensor]
    """Means over the global batch."""
    applied: Float[Tensor, ""]
    """1, or 0 where nothing was updated."""
    flag_names: tuple[str, ...]
    nonfinite_flags: Bool[Tensor, " n"]
    """For each name, whether that loss or gradient is not finite; for `STOP`, whether a rank requested it."""


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
    """Train on this rank's share of a global batch; every rank applies the same update.

    A bad step leaves networks, buffers, optimisers and EMA bit for bit as they were.
    """
    before = [buffer.clone() for buffer in state.buffers]
    gradients = {"generator": state.gradients}
    if state.adversary is not None:
        gradients["discriminator"] = state.adversary.gradients
    for each in gradients.values():
        each.flat.zero_()
    diagnostics: dict[str, Tensor] | None = {} if diagnostics_due(state, config) else None
    objective = STAGE_OBJECTIVES[state.stage]
    losses = objective(state, config, lr, hr, bf16, ranks=ranks, diagnostics=diagnostics)

    # the mean over the ranks, losses and stop request in the same all-reduce as the gradients
    with torch.no_grad():
        flag = stop if isinstance(stop, Tensor) else torch.full((), float(stop), device=lr.device)
        report = StepReport(losses, flag)
        report.pack(state.gradients.piggyback)
    for each in gradients.values():
        ranks.all_reduce_mean_(each.flat)
    report = report.unpack(state.gradients.piggyback)

    if state.scaler is not None:
        for optimizer in optimizers(state).values():
            state.scaler.unscale_(optimizer)
    if diagnostics is not None:
        norms = {f"grad_norm_{name}": each.norm() for name, each in gradients.items()}
        add_diagnostics(state.telemetry, diagnostics | norms)

    # apply all of it or nothing
    bad_losses = {name: ~loss.isfinite() for name, loss in report.losses.items()}
    bad_grads = {
        f"gradient of the {name}": has_nonfinite_grad(each) for name, each in gradients.items()
    }
    skip = torch.stack([*bad_losses.values(), *bad_grads.values()]).any().float()
    flags = {STOP: report.stop_flag > 0} | bad_losses
    if state.scaler is None:
        flags |= bad_grads
    else:  # gradients of fp16 overflow now and then, which the scaler handles: no bad step
        state.scaler.update()
    for name, optimizer in optimizers(state).items():
        take_step(optimizer, skip=skip)
        bump_versions(trained(state)[name])
    restore_unless_applied(state.buffers, before, applied=1 - skip)
    return Outcome(
        losses=report.losses,
        applied=1 - skip,
        flag_names=tuple(flags),
        nonfinite_flags=torch.stack(list(flags.values())),
    )


def count_step(state: TrainState, config: Config, outcome: Outcome) -> None:
    """Advance position, EMA and sums of losses by a step; a bad step advances the position alone."""
    state.progress.patches_seen += config.batch_size
    good = outcome.applied > 0
    for name, value in (outcome.losses | {COUNTED: outcome.applied}).items():
        added = torch.where(good, value, torch.zeros_like(value))
        state.losses[name] = state.losses[name] + added if name in state.losses else added
    if state.ema is not None and state.ema_flat is not None:
        copy_buffers(state.ema, state.generator)
        update_ema(
            [state.ema_flat],
            [state.params_flat],
            halflife=config.ema.halflife_patches,
            batch_size=config.batch_size,
            patches_seen=state.progress.patches_seen,
            applied=outcome.applied,
        )
        bump_versions(state.ema)


def diagnostics_due(state: TrainState, config: Config) -> bool:
    """Whether the next step records diagnostics."""
    return is_due(
        patches_seen=state.progress.patches_seen,
        batch_size=config.batch_size,
        epoch=config.iterations_per_epoch * config.batch_size,
        every=config.telemetry.every_patches,
    )


def has_nonfinite_grad(gradients: Gradients) -> Bool[Tensor, ""]:
    """Whether any gradient is not finite, which shows in the sum; a sum that overflows counts, too."""
    return ~gradients.flat[:-PIGGYBACK].sum().isfinite()


@torch.no_grad()
def restore_unless_applied(
    buffers: list[Tensor], before: list[Tensor], *, applied: Float[Tensor, ""]
) -> None:
    """Restore flat buffers to earlier values unless the step was applied."""
    for now, then in zip(buffers, before, strict=True):
        now.copy_(torch.where(applied > 0, now, then))
