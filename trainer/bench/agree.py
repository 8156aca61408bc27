"""No ratio before the outputs agree: all contestants do the same work, or none is timed.

Losses alone do not show it: those of a young discriminator hardly move, so one that never learns loses
as one that does. So the way of each network from its start is compared, too: how far, and where to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shards.errors import UsrganError
from trainer.config.schema import AdversarialKind
from trainer.training.cuda_graph import WARM_UP

Losses = Mapping[str, float | Tensor]
EVERYBODYS = ("pixel", "content")
"""The losses that do not depend on which adversarial loss a contestant is known for."""
STEPS, CAPTURED_STEPS = 3, WARM_UP + 2
"""The first loss shows the forward pass, the next ones gradients and optimisers; a graph is to be replayed."""


class Bounds(msgspec.Struct, frozen=True):
    """How far two contestants may be apart."""

    losses: float
    """Relative difference of each loss of each step."""
    cosine: float
    """The least that the ways of a network may have."""
    length: float
    """The most that one way may be longer than the other, as a ratio."""


EXACT = Bounds(1e-4, 0.999, 1.01)
"""Ours in float32."""
ROUNDED = Bounds(1e-2, 0.8, 1.2)
"""Ours in bf16: 0.96 was seen of a discriminator, whose early gradients are small beside their rounding."""
PEER, OTHER_PEER = Bounds(1e-2, 0.5, 2.0), Bounds(0.1, 0.5, 2.0)
"""A peer in the same precision and in another: bf16 moves each weight and each activation by up to 0.4 %,
which sixteen layers of VGG-19 turn into 5.5 % of a content loss (docs/internals/log.md)."""
MOVED_BY_ROUNDING = {"content": 3.0, "generator": 3.0}
"""Losses that may be further apart where factors are rounded: VGG-19's small differences were seen 1.9 % apart
between Winograd's and the direct algorithm, both in bf16."""
ANYWHERE = -1.0
"""Cosine of a discriminator that learns from another loss: 0.2 to 0.55 between relativistic and not."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing a step, and what it trains."""

    step: Callable[[], Losses]
    networks: Mapping[str, nn.Module]
    rounded: bool
    """Whether its products round their factors, to bf16 or TF32."""
    kind: AdversarialKind
    """Of its adversarial loss."""
    peer: bool = False


def check_same_work(contestants: Mapping[str, Contestant], *, steps: int = STEPS) -> str:
    """Run some steps of each from the same weights, compare losses and ways; says what was compared.

    Raises:
        UsrganError: one of them does other work than the first; names it and what differs.
    """
    first, reference = next(iter(contestants.items()))
    start = {name: _weights(network) for name, network in reference.networks.items()}
    wanted, ways = _run(reference, start, steps)
    worst = 0.0

    def refuse(name: str, what: str) -> UsrganError:
        return UsrganError(
            f"bench-sr train: {name} does other work than {first}: {what}; no ratio is printed"
        )

    for name, each in contestants.items():
        if each is reference:
            continue
        for network, weights in start.items():
            if not torch.equal(_weights(each.networks[network]), weights):
                raise refuse(name, f"its {network} starts from other weights")
        bounds = _bounds(reference, each)
        found, moved = _run(each, start, steps)
        for number, (ours, theirs) in enumerate(zip(wanted, found, strict=True), start=1):
            for loss in _comparable(reference, each, ours.keys() & theirs.keys()):
                apart = abs(theirs[loss] - ours[loss]) / max(abs(ours[loss]), 1e-12)
                worst = max(worst, apart)
                more = MOVED_BY_ROUNDING.get(loss, 1.0) if bounds is not EXACT else 1.0
                if not apart <= bounds.losses * more:
                    what = f"{loss} of step {number} is {theirs[loss]:.6g} and not {ours[loss]:.6g}"
                    raise refuse(name, what)
        for network, way in ways.items():
            cosine, length = _compared(way, moved[network])
            alike = network == "generator" or each.kind == reference.kind
            least = bounds.cosine if alike else ANYWHERE
            if not (cosine >= least and 1 / bounds.length <= length <= bounds.length):
                what = f"its {network} moves {length:.3g} times as far, at a cosine of {cosine:.3g}"
                raise refuse(name, what)
    return (
        f"losses of {steps} steps from the same weights at most {worst:.1e} apart,"
        f" and {' and '.join(ways)} moved alike"
    )


def _bounds(reference: Contestant, other: Contestant) -> Bounds:
    if other.peer:
        return PEER if other.rounded == reference.rounded else OTHER_PEER
    return ROUNDED if other.rounded or reference.rounded else EXACT


def _comparable(
    reference: Contestant, other: Contestant, shared: Collection[str]
) -> Collection[str]:
    """Of the losses that both tell, those that are the same function of the same logits."""
    alike = reference.kind == other.kind
    return [loss for loss in sorted(shared) if alike or loss in EVERYBODYS]


def _run(
    each: Contestant, start: Mapping[str, Tensor], steps: int
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The losses of its steps, and how each network moved in them."""
    losses = [{name: float(value) for name, value in each.step().items()} for _ in range(steps)]
    return losses, {name: _weights(each.networks[name]) - then for name, then in start.items()}


def _weights(network: nn.Module) -> Float[Tensor, " n"]:
    """All that is trained of a network, in one copy."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def _compared(ours: Float[Tensor, " n"], theirs: Float[Tensor, " n"]) -> tuple[float, float]:
    """Cosine between two ways, and how many times as long as ours theirs is."""
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
    length = torch.linalg.vector_norm(theirs) / torch.linalg.vector_norm(ours)
    return cosine.item(), length.item()
