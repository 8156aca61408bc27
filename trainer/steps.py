"""The two training steps: one signature, one state.

Each takes LR [B 3 h w] and HR [B 3 sh sw] in [0, 1] on the device, updates the state in place and
returns its losses, unweighted, as tensors on the device; reading them is the caller's one sync.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer import telemetry
from trainer.adversarial import discriminator_loss, generator_adversarial_loss, r1_penalty
from trainer.config import Config, Stage
from trainer.content import content_loss, layer_weights
from trainer.losses import pixel_loss
from trainer.networks.discriminator import normalised
from trainer.state import TrainState

Images = Float[Tensor, "b 3 h w"]
GRADIENT = "grad_norm_generator"
Step = Callable[[TrainState, Config, Images, Images, bool], dict[str, Tensor]]


def psnr_step(
    state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool
) -> dict[str, Tensor]:
    """Stage 1: the pixel loss alone (paper §4)."""
    with _autocast(state, lr, bf16):
        sr = state.generator(lr)
    loss = pixel_loss(sr, hr)
    _descend(state, state.optimizer, loss)
    if state.scaler is not None:
        state.scaler.update()
    if _looking(state, config):
        telemetry.note(state.telemetry, {GRADIENT: telemetry.gradient_norm(state.generator)})
    return {"pixel": loss.detach()}


def gan_step(
    state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool
) -> dict[str, Tensor]:
    """Stage 2: the generator against eq. 5, then the discriminator against eq. 4."""
    assert state.adversary is not None
    discriminator, content = state.adversary.discriminator, state.adversary.content
    kind, autocast = config.adversarial.kind, _autocast(state, lr, bf16)
    looking = _looking(state, config)
    seen: dict[str, Tensor] = {}

    # generator: the discriminator stands still, its singular vectors too
    discriminator.eval().requires_grad_(False)
    with normalised(discriminator), autocast:
        sr = state.generator(lr)
        with torch.no_grad():
            wanted = content(hr)
            real = discriminator(hr) if kind == "relativistic" else None
        found = content(sr)
        fake = discriminator(sr)
    terms = {
        "pixel": pixel_loss(sr, hr),
        "content": content_loss(
            found,
            wanted,
            weights=list(layer_weights(config.content.layer).values()),
            criterion=config.content.criterion,
        ),
        "adversarial": generator_adversarial_loss(kind, fake, real),
    }
    weighted = {name: getattr(config.loss, name) * value for name, value in terms.items()}
    total = weighted["pixel"] + weighted["content"] + weighted["adversarial"]
    if looking:
        scale = (lambda loss: loss) if state.scaler is None else state.scaler.scale
        scaled = {name: scale(loss) for name, loss in weighted.items()}  # lest fp16 underflows
        seen |= telemetry.gradient_shares(scaled, sr)
        seen |= {f"weighted_{name}": loss for name, loss in weighted.items()}
    _descend(state, state.optimizer, total)

    # discriminator: real and generated patches in one batch, one power iteration
    discriminator.train().requires_grad_(True)
    with normalised(discriminator):
        with autocast:
            real, fake = discriminator(torch.cat((hr, sr.detach().float()))).chunk(2)
        judged = discriminator_loss(kind, real, fake)
        penalty = _penalty(state, config, discriminator, hr)
        if looking:
            seen["sigma_max"] = telemetry.largest_singular_value(discriminator)
    _descend(state, state.adversary.optimizer, judged + config.adversarial.r1 * penalty)
    if state.scaler is not None:
        state.scaler.update()
    if looking:
        seen[GRADIENT] = telemetry.gradient_norm(state.generator)
        seen["grad_norm_discriminator"] = telemetry.gradient_norm(discriminator)
        telemetry.note(state.telemetry, seen)

    losses = {name: value.detach() for name, value in terms.items()}
    losses |= {"r1": penalty.detach()} if config.adversarial.r1 else {}
    return losses | {
        "generator": total.detach(),
        "discriminator": judged.detach(),
        "d_real": real.detach().float().sigmoid().mean(),
        "d_fake": fake.detach().float().sigmoid().mean(),
    }


def _looking(state: TrainState, config: Config) -> bool:
    return telemetry.due(
        patches_seen=state.patches_seen,
        batch_size=config.batch_size,
        epoch=config.iterations_per_epoch * config.batch_size,
        every=config.telemetry.every_patches,
    )


def _autocast(state: TrainState, lr: Images, bf16: bool) -> torch.autocast:
    """Half precision for the networks: fp16 where the state scales gradients for it, or bf16."""
    half = torch.bfloat16 if state.scaler is None else torch.float16
    return torch.autocast(lr.device.type, half, enabled=bf16 or state.scaler is not None)


def _descend(state: TrainState, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down a loss; under fp16 none where a gradient overflows."""
    optimizer.zero_grad()
    if state.scaler is None:
        loss.backward()
        optimizer.step()
    else:
        state.scaler.scale(loss).backward()
        state.scaler.step(optimizer)


def _penalty(state: TrainState, config: Config, discriminator: nn.Module, hr: Images) -> Tensor:
    """R1 on the real patches, in float32; zero in the steps between.

    Counted `r1_every` times where it is taken, so its mean over the steps of an epoch is the penalty.
    """
    settings = config.adversarial
    step = state.patches_seen // config.batch_size
    if not settings.r1 or step % settings.r1_every:
        return hr.new_zeros(())
    images = hr.detach().requires_grad_()
    return settings.r1_every * r1_penalty(discriminator(images), images)


STEPS: dict[Stage, Step] = {"psnr": psnr_step, "gan": gan_step}
