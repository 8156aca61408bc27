"""The gradients of the two stages: one signature, one state.

Each takes LR [B 3 h w] and HR [B 3 sh sw] in [0, 1] on the device, adds the gradients of its losses to
those in the state, `config.accumulate` micro-batches one after the other, and returns the losses,
unweighted, as tensors on the device. `trainer.update` makes a step of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
Losses = dict[str, Tensor]


def psnr_gradients(state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool) -> Losses:
    """Stage 1: the pixel loss alone (paper §4)."""
    micros = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16):
            sr = state.generator(low)
        loss = pixel_loss(sr, high)
        (loss / config.accumulate).backward()
        micros.append({"pixel": loss.detach()})
    return _mean(micros)


def gan_gradients(state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool) -> Losses:
    """Stage 2: the generator against eq. 5, and the discriminator against eq. 4."""
    assert state.adversary is not None
    discriminator, content = state.adversary.discriminator, state.adversary.content
    autocast = torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16)
    weights, share = config.loss, 1 / config.accumulate

    # generator: the discriminator stands still, its singular vectors too
    discriminator.eval().requires_grad_(False)
    judgements: list[Losses] = []
    made: list[Tensor] = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with normalised(discriminator), autocast:
            sr = state.generator(low)
            with torch.no_grad():
                wanted = content(high)
            found = content(sr)
            fake = discriminator(sr)
        terms = {
            "pixel": pixel_loss(sr, high),
            "content": content_loss(found, wanted, criterion=config.content.criterion),
            "adversarial": generator_adversarial_loss(fake),
        }
        total = (
            weights.pixel * terms["pixel"]
            + weights.content * terms["content"]
            + weights.adversarial * terms["adversarial"]
        )
        (total * share).backward()
        judgements.append(terms | {"generator": total})
        made.append(sr.detach().float())

    # discriminator: real and generated patches in one batch, one power iteration in a step
    discriminator.requires_grad_(True)
    verdicts: list[Losses] = []
    for number, high in enumerate(hr.chunk(config.accumulate)):
        discriminator.train(number == 0)
        with normalised(discriminator), autocast:
            real, fake = discriminator(torch.cat((high, made[number]))).chunk(2)
        judged = discriminator_loss(real, fake)
        (judged * share).backward()
        verdicts.append(
            {
                "discriminator": judged,
                "d_real": real.float().sigmoid().mean(),
                "d_fake": fake.float().sigmoid().mean(),
            }
        )
    return _mean(judgements) | _mean(verdicts)


def _micro_batches(lr: Images, hr: Images, count: int) -> Iterator[tuple[Images, Images]]:
    return zip(lr.chunk(count), hr.chunk(count), strict=True)


def _mean(micros: list[Losses]) -> Losses:
    """The mean of each loss over micro-batches of one size."""
    return {
        name: torch.stack([each[name].detach() for each in micros]).mean() for name in micros[0]
    }


GRADIENTS: dict[Stage, Callable[[TrainState, Config, Images, Images, bool], Losses]] = {
    "psnr": psnr_gradients,
    "gan": gan_gradients,
}
