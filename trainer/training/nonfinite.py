"""Losses that are not finite: skip the step, roll back, stop.

Bad steps are skipped on the device (`trainer.training.step`); here the host reads the flags. On a GPU it reads the
flags of a step while the next step runs, so it never waits for an idle device: stops and rollbacks come one
step late there, on every rank at the same step.

A rollback returns to the last checkpoint that was saved outside a row of bad steps, but not to its
position in the order: the batches up to the bad ones are skipped. If that ends in another rollback
before anything was saved, the checkpoint itself is suspect, and the one before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from shards.errors import UsrganError
from trainer.config.schema import GuardConfig
from trainer.training.state import TrainState
from trainer.training.step import STOP, Outcome

DERIVED = (
    "generator",
    "d_real",
    "d_fake",
    "gradient of the generator",
    "gradient of the discriminator",
)
"""Flags that are set because another one is."""


class Reading:
    """The flags of a step, during their copy to the host."""

    def __init__(self, outcome: Outcome, *, patches_seen: int) -> None:
        self.patches_seen = patches_seen
        self._names = outcome.flag_names
        self._flags = outcome.nonfinite_flags
        self._arrived: torch.cuda.Event | None = None
        if outcome.nonfinite_flags.is_cuda:
            pinned = torch.empty_like(outcome.nonfinite_flags, device="cpu", pin_memory=True)
            self._flags = pinned.copy_(outcome.nonfinite_flags, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def late(self) -> bool:
        """Whether to read the flags only after the next step has started."""
        return self._arrived is not None

    def read(self) -> list[str]:
        """Names of the flags that are set; waits for the copy."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [name for name, flag in zip(self._names, self._flags.tolist(), strict=True) if flag]


class NonfiniteGuard:
    """Counts bad steps in the state and decides about rollbacks."""

    def __init__(self, config: GuardConfig, *, warn: Callable[[str], None]) -> None:
        self.stopping = False
        """Whether a rank requested a stop."""
        self.suspect: int | None = None
        """Position of the checkpoint of the last rollback, patches; None: saved since then."""
        self._config = config
        self._warn = warn
        self._named = ""
        self._pending: Reading | None = None

    def saw(self, state: TrainState, outcome: Outcome) -> bool:
        """Register a step; True if a rollback is due."""
        reading = Reading(outcome, patches_seen=state.progress.patches_seen)
        due = self._pending if reading.late else reading
        self._pending = reading if reading.late else None
        return due is not None and self._count(state, due)

    def settle(self, state: TrainState) -> bool:
        """Wait for flags that are still being copied; True if a rollback is due."""
        due, self._pending = self._pending, None
        return due is not None and self._count(state, due)

    def check_rollback(self, state: TrainState, *, run: Path) -> None:
        """Refuse another rollback after `guard.rollbacks` of them.

        Raises:
            UsrganError: names the terms that are not finite and what to change.
        """
        self._pending = None
        if state.progress.rollbacks >= self._config.rollbacks:
            raise UsrganError(
                f"{run}: {self._named} not finite in {state.progress.consecutive_skips} steps in a row at"
                f" {state.progress.patches_seen:,} patches, after {self._config.rollbacks} rollbacks; the checkpoints"
                " are intact: lower optim.lr, raise optim.warmup_patches, or train with precision fp32,"
                " in another --out"
            )

    def _count(self, state: TrainState, reading: Reading) -> bool:
        names = reading.read()
        self.stopping = self.stopping or STOP in names
        terms = [name for name in names if name != STOP]
        if not terms:
            state.progress.consecutive_skips = 0
            return False
        state.progress.consecutive_skips += 1
        self._named = _listed(terms)
        self._warn(
            f"{self._named} not finite at {reading.patches_seen:,} patches of stage {state.stage};"
            f" the step is left out ({state.progress.consecutive_skips} of {self._config.patience} before a rollback)"
        )
        return state.progress.consecutive_skips >= self._config.patience


def _listed(terms: list[str]) -> str:
    causes = [name for name in terms if name not in DERIVED] or terms
    return f"{', '.join(causes)} {'is' if len(causes) == 1 else 'are'}"
