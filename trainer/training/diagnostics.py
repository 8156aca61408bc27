"""Diagnostics of a step: the share of each loss in the generator's gradient, and singular values.

A diagnosed step costs one more backward pass through each loss and does not wait for the device. It changes no weight,
no statistic and no random number, so a run is bit-identical with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

LOOKS = "looks"
"""Key of the number of diagnosed steps, beside the sums."""
TOO_MUCH, TOO_LITTLE = 0.95, 0.001
"""Largest gradient share of any term, and smallest of the adversarial term, without a warning."""
Row = Mapping[str, float | int | str]


def is_due(*, patches_seen: int, batch_size: int, epoch: int, every: int) -> bool:
    """Return whether the step that starts at `patches_seen` is diagnosed; `epoch` is its length in patches."""
    after = patches_seen + batch_size
    return after % epoch == 0 or (every > 0 and after // every > patches_seen // every)


def gradient_shares(
    weighted: Mapping[str, Float[Tensor, ""]], sr: Float[Tensor, "b 3 h w"]
) -> dict[str, Tensor]:
    """Return the share of each weighted loss in the gradient at the generator's output.

    The share is the norm of the loss's gradient by `sr` over the sum of all norms. The values mean little:
    a mean squared feature difference may be large and flat, a logarithm small and steep.
    """
    norms: dict[str, Tensor] = {}
    for name, loss in weighted.items():
        (gradient,) = torch.autograd.grad(loss, sr, retain_graph=True)
        norms[name] = gradient.detach().float().norm()
    total = torch.stack(list(norms.values())).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {f"share_{name}": norm / total for name, norm in norms.items()}


@torch.no_grad()
def largest_singular_value(discriminator: nn.Module) -> Float[Tensor, ""]:
    """Return the largest singular value of all spectrally normalised weights: about 1.

    A clearly larger value shows that the power iteration lags behind the weights. Call it inside
    `cached_spectral_weights`, where reading a weight makes no further iteration.
    """
    found = []
    for module in discriminator.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            matrix = weight.detach().flatten(1).double()
            found.append(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=0).sqrt())
    return torch.stack(found).max().float() if found else torch.zeros(())


def add_diagnostics(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add the values of one diagnosed step to the sums of the epoch."""
    for name, value in {**values, LOOKS: torch.ones(())}.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value


def mean_diagnostics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means over the diagnosed steps of the epoch, read from the device.

    Values that are not finite are omitted: fp16 skips a step whose gradients overflow.
    """
    looks = sums[LOOKS].item() if LOOKS in sums else 1.0
    found = {name: value.item() / looks for name, value in sums.items() if name != LOOKS}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def find_imbalances(row: Row, warned: set[str]) -> Iterator[str]:
    """Yield a warning for each imbalance of the loss terms in a row of the log; each kind only once."""
    shares = {
        name.removeprefix("share_"): float(value)
        for name, value in row.items()
        if name.startswith("share_")
    }
    for name, share in shares.items():
        if share > TOO_MUCH and name not in warned:
            warned.add(name)
            yield (
                f"the {name} loss makes {share:.1%} of the gradient at the generator's output and the others"
                f" have little effect; lower loss.{name}, or raise theirs"
            )
    share = shares.get("adversarial", 1.0)
    if share < TOO_LITTLE and "no adversary" not in warned:
        warned.add("no adversary")
        yield (
            f"the adversarial loss makes {share:.3%} of the gradient at the generator's output, too little"
            " for a GAN; raise loss.adversarial"
        )
