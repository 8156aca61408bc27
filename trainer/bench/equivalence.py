"""Check that all candidates do the same work; otherwise none is timed.

StepLosses alone do not prove it: those of a young discriminator hardly change, so one that never learns has the same
losses as one that does. The displacement of each network from its start is compared, too: length and direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import UsrganError
from trainer.config.schema import AdversarialKind
from trainer.training.cuda_graph import WARM_UP

StepLosses = Mapping[str, float | Tensor]
SHARED_LOSSES = ("pixel", "content")
"""StepLosses that do not depend on the kind of the adversarial loss."""
STEPS, CAPTURED_STEPS = 3, WARM_UP + 2
"""Step 1 shows the forward pass, later steps gradients and optimisers; a graph is replayed before it is timed."""


class Bounds(NamedTuple):
    """Largest differences between two candidates."""

    losses: float
    """Relative difference of each loss of each step."""
    cosine: float
    """Least cosine between the displacements of a network."""
    length: float
    """Largest ratio of the lengths of two displacements."""


EXACT = Bounds(1e-4, 0.999, 1.01)
"""Ours in float32."""
ROUNDED = Bounds(1e-2, 0.8, 1.2)
"""Ours in bf16: 0.96 was seen for a discriminator, whose early gradients are small against their rounding."""
PEER, OTHER_PEER = Bounds(1e-2, 0.5, 2.0), Bounds(0.1, 0.5, 2.0)
"""A peer in the same precision, and in another: bf16 moves each weight and activation by up to 0.4 %, which
sixteen layers of VGG-19 amplify to 5.5 % of a content loss (docs/internals/log.md)."""
ROUNDED_LOSS_FACTORS = {"content": 3.0, "generator": 3.0}
"""StepLosses with a wider bound under rounding: differences of VGG-19 features were seen 1.9 % apart."""
UNBOUNDED_COSINE = -1.0
"""For discriminators with different losses: 0.2 to 0.55 between relativistic and not."""


@dataclass(frozen=True)
class Candidate:
    """A training step to be timed, and the networks that it trains."""

    step: Callable[[], StepLosses]
    networks: Mapping[str, nn.Module]
    rounded: bool
    """True where products round their factors to bf16 or TF32."""
    kind: AdversarialKind
    """Kind of the adversarial loss."""
    peer: bool = False


def check_same_work(candidates: Mapping[str, Candidate], *, steps: int = STEPS) -> str:
    """Run `steps` steps of each from the same weights, compare losses and displacements; returns a summary.

    Raises:
        UsrganError: a candidate does other work than the first; names it and the difference.
    """
    first, reference = next(iter(candidates.items()))
    start = {name: _flatten_weights(network) for name, network in reference.networks.items()}
    expected, displacements = _run_steps(reference, start, steps)
    largest = 0.0
    for name, candidate in candidates.items():
        if candidate is reference:
            continue
        error = f"bench-sr train: {name} does other work than {first}"
        for network, weights in start.items():
            if not torch.equal(_flatten_weights(candidate.networks[network]), weights):
                raise UsrganError(
                    f"{error}: its {network} starts from other weights; no ratio is printed"
                )
        bounds = _choose_bounds(reference, candidate)
        losses, moved = _run_steps(candidate, start, steps)
        same_kind = candidate.kind == reference.kind
        for number, (ours, theirs) in enumerate(zip(expected, losses, strict=True), start=1):
            for loss in sorted(ours.keys() & theirs.keys()):
                if not (same_kind or loss in SHARED_LOSSES):
                    continue
                difference = abs(theirs[loss] - ours[loss]) / max(abs(ours[loss]), 1e-12)
                largest = max(largest, difference)
                factor = ROUNDED_LOSS_FACTORS.get(loss, 1.0) if bounds is not EXACT else 1.0
                if not difference <= bounds.losses * factor:
                    raise UsrganError(
                        f"{error}: {loss} of step {number} is {theirs[loss]:.6g} and not"
                        f" {ours[loss]:.6g}; no ratio is printed"
                    )
        for network, displacement in displacements.items():
            cosine = F.cosine_similarity(displacement, moved[network], dim=0).item()
            length = (moved[network].norm() / displacement.norm()).item()
            comparable = network == "generator" or same_kind
            least = bounds.cosine if comparable else UNBOUNDED_COSINE
            if not (cosine >= least and 1 / bounds.length <= length <= bounds.length):
                raise UsrganError(
                    f"{error}: its {network} moves {length:.3g} times as far, at a cosine of"
                    f" {cosine:.3g}; no ratio is printed"
                )
    return (
        f"losses of {steps} steps from the same weights differ by at most {largest:.1e},"
        f" and {' and '.join(displacements)} moved alike"
    )


def _choose_bounds(reference: Candidate, other: Candidate) -> Bounds:
    if other.peer:
        return PEER if other.rounded == reference.rounded else OTHER_PEER
    return ROUNDED if other.rounded or reference.rounded else EXACT


def _run_steps(
    candidate: Candidate, start: Mapping[str, Tensor], steps: int
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """StepLosses of each step, and the displacement of each network from its start."""
    losses = [{key: float(loss) for key, loss in candidate.step().items()} for _ in range(steps)]
    networks = candidate.networks
    return losses, {name: _flatten_weights(networks[name]) - start[name] for name in start}


def _flatten_weights(network: nn.Module) -> Float[Tensor, " n"]:
    """All trained weights of a network in one copy."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
