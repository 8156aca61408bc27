"""The two training steps: one signature, one state.

Each takes LR [B 3 h w] and HR [B 3 sh sw] in [0, 1] on the device, updates the state in place and
returns its losses, unweighted, as tensors on the device; reading them is the caller's one sync.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.config import Config, Stage
from trainer.losses import (
    content_loss,
    discriminator_loss,
    generator_adversarial_loss,
    pixel_loss,
)
from trainer.networks.discriminator import normalised
from trainer.state import TrainState

Images = Float[Tensor, "b 3 h w"]
Step = Callable[[TrainState, Config, Images, Images, bool], dict[str, Tensor]]


def psnr_step(
    state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool
) -> dict[str, Tensor]:
    """Stage 1: the pixel loss alone (paper §4)."""
    with torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16):
        sr = state.generator(lr)
    loss = pixel_loss(sr, hr)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return {"pixel": loss.detach()}


def gan_step(
    state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool
) -> dict[str, Tensor]:
    """Stage 2: the generator against eq. 5, then the discriminator against eq. 4."""
    assert state.adversary is not None
    discriminator, content = state.adversary.discriminator, state.adversary.content
    autocast = torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16)

    # generator: the discriminator stands still, its singular vectors too
    discriminator.eval().requires_grad_(False)
    with normalised(discriminator), autocast:
        sr = state.generator(lr)
        with torch.no_grad():
            wanted = content(hr)
        found = content(sr)
        fake = discriminator(sr)
    terms = {
        "pixel": pixel_loss(sr, hr),
        "content": content_loss(found, wanted, criterion=config.content.criterion),
        "adversarial": generator_adversarial_loss(fake),
    }
    weights = config.loss
    total = (
        weights.pixel * terms["pixel"]
        + weights.content * terms["content"]
        + weights.adversarial * terms["adversarial"]
    )
    state.optimizer.zero_grad()
    total.backward()
    state.optimizer.step()

    # discriminator: real and generated patches in one batch, one power iteration
    discriminator.train().requires_grad_(True)
    with normalised(discriminator), autocast:
        real, fake = discriminator(torch.cat((hr, sr.detach().float()))).chunk(2)
    judged = discriminator_loss(real, fake)
    state.adversary.optimizer.zero_grad()
    judged.backward()
    state.adversary.optimizer.step()

    losses = {name: value.detach() for name, value in terms.items()}
    return losses | {
        "generator": total.detach(),
        "discriminator": judged.detach(),
        "d_real": real.detach().float().sigmoid().mean(),
        "d_fake": fake.detach().float().sigmoid().mean(),
    }


STEPS: dict[Stage, Step] = {"psnr": psnr_step, "gan": gan_step}
