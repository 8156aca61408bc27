"""Adversarial losses of generator and discriminator.

The five kinds are functions of logits [b] or [b 1 h w], with logit C and D = sigmoid(C). All are
means over all logits, computed in float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from trainer.config.schema import AdversarialKind

Logits = Float[Tensor, "b *map"]


def generator_adversarial_loss(
    kind: AdversarialKind, fake: Logits, real: Logits | None = None
) -> Float[Tensor, ""]:
    """Return the generator's loss; only the relativistic kind needs `real`.

    non-saturating   -log D(fake), as the paper's text describes
    saturating       log(1 - D(fake)), the paper's eq. 3 as printed: hardly any gradient while D wins
    relativistic     the mean of -log(1 - D(real - E fake)) and -log D(fake - E real): ESRGAN's code
                     halves the sum of its eq. 2, and its weight of 0.005 belongs to that half
    hinge            -C(fake) (arXiv:1705.02894)
    least-squares    (C(fake) - 1)^2 / 2 (arXiv:1611.04076)
    """
    fake = fake.float()
    match kind:
        case "non-saturating":
            return F.softplus(-fake).mean()
        case "saturating":
            return -F.softplus(fake).mean()
        case "relativistic":
            assert real is not None
            real = real.float()
            real_term = F.softplus(real - fake.mean()).mean()
            return (real_term + F.softplus(real.mean() - fake).mean()) / 2
        case "hinge":
            return -fake.mean()
        case "least-squares":
            return (fake - 1).square().mean() / 2


def discriminator_loss(kind: AdversarialKind, real: Logits, fake: Logits) -> Float[Tensor, ""]:
    """Return the discriminator's loss, minimal where it separates real from fake.

    (non-)saturating  -log D(real) - log(1 - D(fake)), eq. 4 with the sign of a loss
    relativistic      the mean of -log D(real - E fake) and -log(1 - D(fake - E real))
    hinge             max(0, 1 - C(real)) + max(0, 1 + C(fake))
    least-squares     (C(real) - 1)^2 / 2 + C(fake)^2 / 2
    """
    real, fake = real.float(), fake.float()
    match kind:
        case "non-saturating" | "saturating":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        case "relativistic":
            real_term = F.softplus(fake.mean() - real).mean()
            return (real_term + F.softplus(fake - real.mean()).mean()) / 2
        case "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        case "least-squares":
            return ((real - 1).square().mean() + fake.square().mean()) / 2


def discriminator_confidence(
    kind: AdversarialKind, real: Logits, fake: Logits
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean probability of "real" that the discriminator gives to real and to fake patches.

    Both are 0.5 if it cannot tell them apart. The relativistic kind compares each logit with the mean of the other
    kind, because its logits may drift together.
    """
    real, fake = real.float(), fake.float()
    if kind == "relativistic":
        real, fake = real - fake.mean(), fake - real.mean()
    return real.sigmoid().mean(), fake.sigmoid().mean()


def r1_penalty(logits: Logits, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Return the R1 penalty: half the squared norm of the gradient of the mean logit by each real patch.

    The result is a mean over the batch (arXiv:1801.04406, eq. 9, without its weight).

    Args:
        logits: logits of the discriminator for `images`.
        images: real patches that require a gradient.
    """
    per_image = logits.float().flatten(1).mean(1) if logits.ndim > 1 else logits.float()
    (gradient,) = torch.autograd.grad(per_image.sum(), images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / 2
