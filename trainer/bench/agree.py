"""No ratio before the outputs agree: all contestants do the same work, or none is timed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from shards.errors import UsrganError

COMPARED = ("pixel", "content")
"""The losses that do not depend on which adversarial loss a peer is known for."""
STEPS = 3
"""The first loss shows the forward pass, the next ones gradients and optimisers."""
SAME, OTHER = 1e-2, 0.1
"""Relative, in the same precision and in another: bf16 moves each weight and each activation by up to
0.4 %, which sixteen layers of VGG-19 turn into 5.5 % of a content loss (docs/log.md)."""


def check_same_work(
    ways: Mapping[str, Callable[[], Mapping[str, float | Tensor]]], *, halves: Collection[str]
) -> str:
    """Run three steps of each from the same weights and compare their losses; says what was compared.

    `halves` names those that compute in bf16.

    Raises:
        UsrganError: one of them does other work; names it, the loss and the step.
    """
    seen = {name: [_read(way()) for _ in range(STEPS)] for name, way in ways.items()}
    first = next(iter(seen))
    worst = 0.0
    for name, steps in seen.items():
        tolerance = SAME if (name in halves) == (first in halves) else OTHER
        for number, (ours, theirs) in enumerate(zip(seen[first], steps, strict=True), start=1):
            for loss, value in ours.items():
                apart = abs(theirs[loss] - value) / max(abs(value), 1e-12)
                worst = max(worst, apart)
                if not apart <= tolerance:
                    raise UsrganError(
                        f"bench-sr train: {name} does other work than {first}: {loss} of step {number} is"
                        f" {theirs[loss]:.6g} and not {value:.6g}; no ratio is printed"
                    )
    losses = " and ".join(seen[first][0])
    return f"{losses} loss of {STEPS} steps from the same weights, at most {worst:.1e} apart"


def _read(losses: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in losses.items() if name in COMPARED}
