"""What happens when losses stop being finite: skip, roll back, stop.

Steps that are not finite are left out on the device (`trainer.training.step`); here the host learns of it.
On a GPU it reads each step's signs while the next step runs, so that it never waits for an idle
device: stops and rollbacks come one step late there, on every rank at the same step.

A rollback returns to the last checkpoint that was saved outside a row of bad steps, but not to its
place in the order: the batches up to the bad ones are passed over. If that ends in another rollback
before anything was saved, the checkpoint itself is suspected, and the one before it is taken.
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
"""What is not finite because something else is not."""


class Reading:
    """The signs of a step, on their way to the host."""

    def __init__(self, outcome: Outcome, *, patches_seen: int) -> None:
        self.patches_seen = patches_seen
        self._names = outcome.names
        self._signs = outcome.signs
        self._arrived: torch.cuda.Event | None = None
        if outcome.signs.is_cuda:
            pinned = torch.empty_like(outcome.signs, device="cpu", pin_memory=True)
            self._signs = pinned.copy_(outcome.signs, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def late(self) -> bool:
        """Whether it is worth waiting for the next step to begin."""
        return self._arrived is not None

    def read(self) -> list[str]:
        """The names whose sign is set; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [name for name, sign in zip(self._names, self._signs.tolist(), strict=True) if sign]


class NonfiniteGuard:
    """Counts bad steps in the state, and knows when it is enough."""

    def __init__(self, config: GuardConfig, *, warn: Callable[[str], None]) -> None:
        self.stopping = False
        """Whether a rank was asked to stop."""
        self.suspect: int | None = None
        """Where the checkpoint stands that was returned to last, patches; None: none since the last save."""
        self._config = config
        self._warn = warn
        self._named = ""
        self._pending: Reading | None = None

    def saw(self, state: TrainState, outcome: Outcome) -> bool:
        """Take in a step; True if it is time to roll back."""
        reading = Reading(outcome, patches_seen=state.patches_seen)
        due = self._pending if reading.late else reading
        self._pending = reading if reading.late else None
        return due is not None and self._count(state, due)

    def settle(self, state: TrainState) -> bool:
        """Wait for what is still on its way; True if it is time to roll back."""
        due, self._pending = self._pending, None
        return due is not None and self._count(state, due)

    def check_rollback(self, state: TrainState, *, run: Path) -> None:
        """Whether there may be one more rollback.

        Raises:
            UsrganError: there were enough.
        """
        self._pending = None
        if state.rollbacks >= self._config.rollbacks:
            raise UsrganError(
                f"{run}: {self._named} not finite in {state.bad_in_a_row} steps in a row at"
                f" {state.patches_seen:,} patches, after {self._config.rollbacks} rollbacks; the checkpoints"
                " are intact: lower optim.lr, raise optim.warmup_patches, or train with precision fp32,"
                " in another --out"
            )

    def _count(self, state: TrainState, reading: Reading) -> bool:
        odd = reading.read()
        self.stopping = self.stopping or STOP in odd
        terms = [name for name in odd if name != STOP]
        if not terms:
            state.bad_in_a_row = 0
            return False
        state.bad_in_a_row += 1
        self._named = _listed(terms)
        self._warn(
            f"{self._named} not finite at {reading.patches_seen:,} patches of stage {state.stage};"
            f" the step is left out ({state.bad_in_a_row} of {self._config.patience} before a rollback)"
        )
        return state.bad_in_a_row >= self._config.patience


def _listed(terms: list[str]) -> str:
    causes = [name for name in terms if name not in DERIVED] or terms
    return f"{', '.join(causes)} {'is' if len(causes) == 1 else 'are'}"
