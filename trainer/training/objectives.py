"""The gradients of the two stages: one signature, one state.

Each takes LR [B 3 h w] and HR [B 3 sh sw] in [0, 1] on the device, adds the gradients of its losses to
those in the state, `config.accumulate` micro-batches one after the other, and returns the losses,
unweighted, as tensors on the device. `trainer.training.step` makes a step of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.config.schema import AdversarialKind, Config, Stage
from trainer.distributed.process_group import ProcessGroup
from trainer.losses.adversarial import (
    Logits,
    beliefs,
    discriminator_loss,
    generator_adversarial_loss,
    r1_penalty,
)
from trainer.losses.content import content_loss, parse_layers
from trainer.losses.pixel import pixel_loss
from trainer.networks.discriminator import normalised
from trainer.training import diagnostics
from trainer.training.state import TrainState

Images = Float[Tensor, "b 3 h w"]
Losses = dict[str, Tensor]
Seen = dict[str, Tensor]
"""What `telemetry` wants to know of a step that it looks into."""


class GradientsOf(Protocol):
    """What both stages have in common."""

    def __call__(
        self,
        state: TrainState,
        config: Config,
        lr: Images,
        hr: Images,
        bf16: bool,
        *,
        ranks: ProcessGroup,
        seen: Seen | None,
    ) -> Losses:
        """Add gradients to the state's; fills `seen` if it is there."""


def psnr_gradients(
    state: TrainState,
    config: Config,
    lr: Images,
    hr: Images,
    bf16: bool,
    *,
    ranks: ProcessGroup,
    seen: Seen | None,
) -> Losses:
    """Stage 1: the pixel loss alone (paper §4)."""
    micros = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with _autocast(state, lr, bf16):
            sr = state.generator(low)
        loss = pixel_loss(sr, high)
        _backward(state, loss / config.accumulate)
        micros.append({"pixel": loss})
    return _mean(micros)


def gan_gradients(
    state: TrainState,
    config: Config,
    lr: Images,
    hr: Images,
    bf16: bool,
    *,
    ranks: ProcessGroup,
    seen: Seen | None,
) -> Losses:
    """Stage 2: the generator against eq. 5, and the discriminator against eq. 4."""
    assert state.adversary is not None
    discriminator, content = state.adversary.discriminator, state.adversary.content
    kind, autocast = config.adversarial.kind, _autocast(state, lr, bf16)
    share = 1 / config.accumulate

    # generator: the discriminator stands still, its singular vectors too
    discriminator.eval().requires_grad_(False)
    judgements: list[Losses] = []
    made: list[Tensor] = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with normalised(discriminator), autocast:
            sr = state.generator(low)
            with torch.no_grad():
                wanted = content(high)
                real = discriminator(high) if kind == "relativistic" else None
            found = content(sr)
            fake = discriminator(sr)
        terms = {
            "pixel": pixel_loss(sr, high),
            "content": content_loss(
                found,
                wanted,
                weights=list(parse_layers(config.content.layer).values()),
                criterion=config.content.criterion,
            ),
            "adversarial": generator_adversarial_loss(
                kind,
                _of_all(kind, ranks, fake),
                None if real is None else ranks.all_gather_grad(real),
            ),
        }
        weighted = {name: getattr(config.loss, name) * value for name, value in terms.items()}
        total = weighted["pixel"] + weighted["content"] + weighted["adversarial"]
        if seen is not None and not made:
            scaled = {name: _scaled(state, loss) for name, loss in weighted.items()}
            seen |= diagnostics.gradient_shares(scaled, sr)
            seen |= {f"weighted_{name}": loss for name, loss in weighted.items()}
        _backward(state, total * share)
        judgements.append(terms | {"generator": total})
        made.append(sr.detach().float())

    # discriminator: real and generated patches in one batch, one power iteration in a step
    discriminator.requires_grad_(True)
    verdicts: list[Losses] = []
    for number, high in enumerate(hr.chunk(config.accumulate)):
        discriminator.train(number == 0)
        with normalised(discriminator):
            with autocast:
                logits = discriminator(torch.cat((high, made[number]))).chunk(2)
            real, fake = (_of_all(kind, ranks, each) for each in logits)
            judged, believed = discriminator_loss(kind, real, fake), beliefs(kind, real, fake)
            penalty = _penalty(state, config, discriminator, high)
            if seen is not None and number == 0:
                seen["sigma_max"] = diagnostics.largest_singular_value(discriminator)
        _backward(state, (judged + config.adversarial.r1 * penalty) * share)
        verdicts.append(
            {
                "discriminator": judged,
                **({"r1": penalty} if config.adversarial.r1 else {}),
                "d_real": believed[0],
                "d_fake": believed[1],
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


def _autocast(state: TrainState, lr: Images, bf16: bool) -> torch.autocast:
    """Half precision for the networks: fp16 where the state scales gradients for it, or bf16."""
    half = torch.bfloat16 if state.scaler is None else torch.float16
    return torch.autocast(lr.device.type, half, enabled=bf16 or state.scaler is not None)


def _scaled(state: TrainState, loss: Tensor) -> Tensor:
    """A loss whose gradients fp16 can hold; the loss itself in other precisions."""
    return loss if state.scaler is None else state.scaler.scale(loss)


def _backward(state: TrainState, loss: Tensor) -> None:
    _scaled(state, loss).backward()


def _of_all(kind: AdversarialKind, ranks: ProcessGroup, logits: Logits) -> Logits:
    """The logits that a loss compares: only the relativistic kind looks beyond this rank's patches."""
    return ranks.all_gather_grad(logits) if kind == "relativistic" else logits


def _penalty(state: TrainState, config: Config, discriminator: nn.Module, hr: Images) -> Tensor:
    """R1 on the real patches, in float32; zero in the steps between.

    Counted `r1_every` times where it is taken, so its mean over the steps of an epoch is the penalty.
    """
    if not penalised(state, config):
        return hr.new_zeros(())
    images = hr.detach().requires_grad_()
    return config.adversarial.r1_every * r1_penalty(discriminator(images), images)


def penalised(state: TrainState, config: Config) -> bool:
    """Whether the step that comes next takes R1."""
    settings = config.adversarial
    step = state.patches_seen // config.batch_size
    return settings.r1 > 0 and step % settings.r1_every == 0


STAGE_OBJECTIVES: dict[Stage, GradientsOf] = {"psnr": psnr_gradients, "gan": gan_gradients}
