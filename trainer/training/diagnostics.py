"""Who pulls at the generator, and how hard: a look beneath the losses, now and then.

A look costs one more pass back through each loss and reads nothing from the device; it changes no
weight, no statistic and no random number, so a run is the same to the bit with it and without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

LOOKS = "looks"
"""Name of the count beside the sums."""
TOO_MUCH, TOO_LITTLE = 0.95, 0.001
"""Gradient shares of any one term, and of the adversarial term, that are worth a warning."""
Row = Mapping[str, float | int | str]


def is_due(*, patches_seen: int, batch_size: int, epoch: int, every: int) -> bool:
    """Whether the step that begins at `patches_seen` is looked into; `epoch` is in patches."""
    after = patches_seen + batch_size
    return after % epoch == 0 or (every > 0 and after // every > patches_seen // every)


def gradient_shares(
    weighted: Mapping[str, Float[Tensor, ""]], sr: Float[Tensor, "b 3 h w"]
) -> dict[str, Tensor]:
    """What each weighted term is, and its part in the pull at the generator's output.

    The part is the norm of the term's gradient by `sr` over the sum of all norms. The losses' sizes
    say little: a mean squared difference of features may be large and flat, a logarithm small and steep.
    """
    norms: dict[str, Tensor] = {}
    for name, loss in weighted.items():
        (gradient,) = torch.autograd.grad(loss, sr, retain_graph=True)
        norms[name] = gradient.detach().float().norm()
    total = torch.stack(list(norms.values())).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {f"share_{name}": norm / total for name, norm in norms.items()}


@torch.no_grad()
def largest_singular_value(discriminator: nn.Module) -> Float[Tensor, ""]:
    """The largest singular value of any spectrally normalised weight as it is used: about 1.

    More than a little above it says that power iteration lags behind the weights. To be called
    inside `cached_spectral_weights`, where a weight is computed once and read without another iteration.
    """
    found = []
    for module in discriminator.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            matrix = weight.detach().flatten(1).double()
            found.append(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=0).sqrt())
    return torch.stack(found).max().float() if found else torch.zeros(())


def add_diagnostics(sums: dict[str, Tensor], seen: Mapping[str, Tensor]) -> None:
    """Add one look to the sums of the epoch."""
    for name, value in {**seen, LOOKS: torch.ones(())}.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value


def mean_diagnostics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The epoch's means over its looks, read from the device.

    What is not finite is left out: fp16 skips a step whose gradients overflow, and goes on.
    """
    looks = sums[LOOKS].item() if LOOKS in sums else 1.0
    found = {name: value.item() / looks for name, value in sums.items() if name != LOOKS}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def find_imbalances(row: Row, told: set[str]) -> Iterator[str]:
    """What to say about a row of the log whose terms are out of balance, each matter once."""
    shares = {
        name.removeprefix("share_"): float(value)
        for name, value in row.items()
        if name.startswith("share_")
    }
    for name, share in shares.items():
        if share > TOO_MUCH and name not in told:
            told.add(name)
            yield (
                f"the {name} loss makes {share:.1%} of the gradient at the generator's output and the others"
                f" hardly count; lower loss.{name}, or raise theirs"
            )
    share = shares.get("adversarial", 1.0)
    if share < TOO_LITTLE and "no adversary" not in told:
        told.add("no adversary")
        yield (
            f"the adversarial loss makes {share:.3%} of the gradient at the generator's output, so this is hardly"
            " a GAN; raise loss.adversarial"
        )
