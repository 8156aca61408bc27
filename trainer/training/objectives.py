"""The objectives of the two stages and their gradients: one signature, one state.

Each takes LR [B 3 h w] and HR [B 3 sh sw] in [0, 1] on the device, adds the gradients of its losses to
those in the state, over `config.accumulate` micro-batches, and returns the unweighted losses as tensors on
the device. `trainer.training.step` makes a step of them.
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
    discriminator_confidence,
    discriminator_loss,
    generator_adversarial_loss,
    r1_penalty,
)
from trainer.losses.content import content_loss, parse_layers
from trainer.losses.pixel import pixel_loss
from trainer.networks.discriminators import cached_spectral_weights
from trainer.training.diagnostics import gradient_shares, largest_singular_value
from trainer.training.state import TrainState

Images = Float[Tensor, "b 3 h w"]
Losses = dict[str, Tensor]
Diagnostics = dict[str, Tensor]
"""Scalars that `telemetry` records in some steps."""


class StageObjective(Protocol):
    """The signature of both stages."""

    def __call__(
        self,
        state: TrainState,
        config: Config,
        lr: Images,
        hr: Images,
        bf16: bool,
        *,
        ranks: ProcessGroup,
        diagnostics: Diagnostics | None,
    ) -> Losses:
        """Add gradients to those of the state; fills `diagnostics` unless it is None."""


def psnr_gradients(
    state: TrainState,
    config: Config,
    lr: Images,
    hr: Images,
    bf16: bool,
    *,
    ranks: ProcessGroup,
    diagnostics: Diagnostics | None,
) -> Losses:
    """Stage 1: the pixel loss alone (paper §4)."""
    micros = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with _autocast(state, lr, bf16):
            sr = state.generator(low)
        loss = pixel_loss(sr, high)
        _backward(state, loss / config.accumulate)
        micros.append({"pixel": loss})
    return _mean_over_micro_batches(micros)


def gan_gradients(
    state: TrainState,
    config: Config,
    lr: Images,
    hr: Images,
    bf16: bool,
    *,
    ranks: ProcessGroup,
    diagnostics: Diagnostics | None,
) -> Losses:
    """Stage 2: the generator against eq. 5, and the discriminator against eq. 4."""
    assert state.adversary is not None
    discriminator, content = state.adversary.discriminator, state.adversary.content
    kind, autocast = config.adversarial.kind, _autocast(state, lr, bf16)
    share = 1 / config.accumulate

    # generator: the discriminator is frozen, including its singular vectors
    discriminator.eval().requires_grad_(False)
    generator_terms: list[Losses] = []
    generated: list[Tensor] = []
    for low, high in _micro_batches(lr, hr, config.accumulate):
        with cached_spectral_weights(discriminator), autocast:
            sr = state.generator(low)
            with torch.no_grad():
                hr_features = content(high)
                real = discriminator(high) if kind == "relativistic" else None
            sr_features = content(sr)
            fake = discriminator(sr)
        terms = {
            "pixel": pixel_loss(sr, high),
            "content": content_loss(
                sr_features,
                hr_features,
                weights=list(parse_layers(config.content.layer).values()),
                criterion=config.content.criterion,
            ),
            "adversarial": generator_adversarial_loss(
                kind,
                _gather_logits(kind, ranks, fake),
                None if real is None else ranks.all_gather_grad(real),
            ),
        }
        weighted = {name: getattr(config.loss, name) * value for name, value in terms.items()}
        total = weighted["pixel"] + weighted["content"] + weighted["adversarial"]
        if diagnostics is not None and not generated:
            scaled = {name: _scale_for_fp16(state, loss) for name, loss in weighted.items()}
            diagnostics |= gradient_shares(scaled, sr)
            diagnostics |= {f"weighted_{name}": loss for name, loss in weighted.items()}
        _backward(state, total * share)
        generator_terms.append(terms | {"generator": total})
        generated.append(sr.detach().float())

    # discriminator: real and generated patches in one batch, one power iteration in a step
    discriminator.requires_grad_(True)
    discriminator_terms: list[Losses] = []
    for number, high in enumerate(hr.chunk(config.accumulate)):
        discriminator.train(number == 0)
        with cached_spectral_weights(discriminator):
            with autocast:
                logits = discriminator(torch.cat((high, generated[number]))).chunk(2)
            real, fake = (_gather_logits(kind, ranks, each) for each in logits)
            loss = discriminator_loss(kind, real, fake)
            d_real, d_fake = discriminator_confidence(kind, real, fake)
            penalty = _r1_term(state, config, discriminator, high)
            if diagnostics is not None and number == 0:
                diagnostics["sigma_max"] = largest_singular_value(discriminator)
        _backward(state, (loss + config.adversarial.r1 * penalty) * share)
        discriminator_terms.append(
            {
                "discriminator": loss,
                **({"r1": penalty} if config.adversarial.r1 else {}),
                "d_real": d_real,
                "d_fake": d_fake,
            }
        )
    return _mean_over_micro_batches(generator_terms) | _mean_over_micro_batches(discriminator_terms)


def _micro_batches(lr: Images, hr: Images, count: int) -> Iterator[tuple[Images, Images]]:
    return zip(lr.chunk(count), hr.chunk(count), strict=True)


def _mean_over_micro_batches(micros: list[Losses]) -> Losses:
    """The mean of each loss over micro-batches of equal size."""
    return {
        name: torch.stack([each[name].detach() for each in micros]).mean() for name in micros[0]
    }


def _autocast(state: TrainState, lr: Images, bf16: bool) -> torch.autocast:
    """Half precision for the networks: fp16 where the state scales gradients for it, or bf16."""
    half = torch.bfloat16 if state.scaler is None else torch.float16
    return torch.autocast(lr.device.type, half, enabled=bf16 or state.scaler is not None)


def _scale_for_fp16(state: TrainState, loss: Tensor) -> Tensor:
    """The loss scaled so that fp16 can hold its gradients; the loss itself in other precisions."""
    return loss if state.scaler is None else state.scaler.scale(loss)


def _backward(state: TrainState, loss: Tensor) -> None:
    _scale_for_fp16(state, loss).backward()


def _gather_logits(kind: AdversarialKind, ranks: ProcessGroup, logits: Logits) -> Logits:
    """The logits that a loss compares: those of all ranks for the relativistic kind, else this rank's."""
    return ranks.all_gather_grad(logits) if kind == "relativistic" else logits


def _r1_term(state: TrainState, config: Config, discriminator: nn.Module, hr: Images) -> Tensor:
    """R1 on the real patches, in float32; zero in the steps between.

    It is weighted by `r1_every`, so its mean over the steps of an epoch is the penalty.
    """
    if not r1_due(state, config):
        return hr.new_zeros(())
    images = hr.detach().requires_grad_()
    return config.adversarial.r1_every * r1_penalty(discriminator(images), images)


def r1_due(state: TrainState, config: Config) -> bool:
    """Whether the next step includes R1."""
    settings = config.adversarial
    step = state.progress.patches_seen // config.batch_size
    return settings.r1 > 0 and step % settings.r1_every == 0


STAGE_OBJECTIVES: dict[Stage, StageObjective] = {"psnr": psnr_gradients, "gan": gan_gradients}
