"""No ratio before the outputs agree: all contestants do the same work, or none is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from shards.errors import UsrganError

COMPARED = ("pixel", "content")
"""The losses that do not depend on which adversarial loss a peer is known for."""
STEPS = 3
"""The first loss shows the forward pass, the next ones gradients and optimisers."""
TOLERANCE = {"fp32": 2e-3, "bf16": 2e-2}
"""Relative; where a contestant computes in bf16, its rounding passes through Adam's first steps."""


def check_same_work(
    ways: Mapping[str, Callable[[], Mapping[str, float | Tensor]]], *, bf16: bool
) -> str:
    """Run three steps of each from the same weights and compare their losses; says what was compared.

    Raises:
        UsrganError: one of them does other work; names it, the loss and the step.
    """
    seen = {name: [_read(way()) for _ in range(STEPS)] for name, way in ways.items()}
    first = next(iter(seen))
    tolerance = TOLERANCE["bf16" if bf16 or any("amp" in name for name in seen) else "fp32"]
    worst = 0.0
    for name, steps in seen.items():
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
