"""A training step the way of BasicSR, in our own words: the peer of `bench-sr train`.

What its models do (BasicSR v1.4.2, `models/sr_model.py`, `srgan_model.py`, `esrgan_model.py`): eager
PyTorch, contiguous tensors, losses read with `.item()` in every step, the average of the weights by a
loop in Python over all parameters. Its ESRGAN passes five batches through the discriminator in a step
and goes back through it three times; every pass in training mode makes a power iteration of its own.
The networks are ours, with the same weights, as are Adam's settings and the weights of the losses.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.bench.agree import Contestant
from trainer.config.schema import Config
from trainer.losses.content import parse_layers
from trainer.training.optim import build_adam
from trainer.training.state import TrainState

Images = Float[Tensor, "b 3 h w"]
PeerStep = Callable[[], dict[str, float | Tensor]]


class Peer(msgspec.Struct, frozen=True):
    """One way of running it."""

    autocast: bool = False
    """bf16 autocast; BasicSR itself has none."""
    channels_last: bool = False
    tf32: bool = False
    """Whether float32 products may round their factors to TF32 on a GPU."""
    judged: Literal["five", "three"] = "five"
    """Batches through the discriminator: ESRGAN's relativistic five, or SRGAN's three."""
    reads_losses: bool = True
    """`.item()` on every loss of every step."""


PEERS: dict[str, Peer] = {
    "peer-fp32": Peer(),
    "peer-tf32": Peer(tf32=True),
    "peer-amp": Peer(autocast=True),
    "peer-amp-cl": Peer(autocast=True, channels_last=True),
    "peer-lean": Peer(autocast=True, channels_last=True, judged="three", reads_losses=False),
}
"""The last is no peer's way as published, but what a careful user would make of it."""


def peer_step(peer: Peer, state: TrainState, config: Config, lr: Images, hr: Images) -> Contestant:
    """A step on copies of a state's networks, and on the same batch every time.

    The networks must be in plain form: the copy takes their code along.
    """
    layout = torch.channels_last if peer.channels_last else torch.contiguous_format
    generator = copy.deepcopy(state.generator).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub
    average = copy.deepcopy(generator)
    optimizer = build_adam(config.optim, generator.parameters())
    low, high = lr.contiguous(memory_format=layout), hr.contiguous(memory_format=layout)
    keep = 0.999

    def precision() -> torch.autocast:
        return torch.autocast(lr.device.type, torch.bfloat16, enabled=peer.autocast)

    def update_average() -> None:
        live = dict(generator.named_parameters())
        for name, target in average.named_parameters():
            target.data.mul_(keep).add_(live[name].data, alpha=1 - keep)

    def losses_of(found: dict[str, Tensor]) -> dict[str, float | Tensor]:
        return {name: loss.item() if peer.reads_losses else loss for name, loss in found.items()}

    def psnr() -> dict[str, float | Tensor]:
        with precision():
            sr = generator(low)
        optimizer.zero_grad()
        pixel = F.l1_loss(sr.float(), high)
        pixel.backward()
        optimizer.step()
        update_average()
        return losses_of({"pixel": pixel.detach()})

    def contestant(step: PeerStep, **networks: nn.Module) -> Contestant:
        def run() -> dict[str, float | Tensor]:
            with _rounding(peer):
                return step()

        return Contestant(
            step=run,
            networks=networks,
            rounded=peer.autocast or peer.tf32,
            kind="relativistic" if peer.judged == "five" else "non-saturating",
            peer=True,
        )

    generator.train()
    if state.adversary is None:
        return contestant(psnr, generator=generator)
    discriminator = copy.deepcopy(state.adversary.discriminator).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub
    content = copy.deepcopy(state.adversary.content).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub
    shares = list(parse_layers(config.content.layer).values())
    squared = config.content.criterion == "l2"
    judging = build_adam(config.optim, discriminator.parameters())
    discriminator.train()

    def judge(images: Tensor) -> Tensor:
        with precision():
            logits: Tensor = discriminator(images)
        return logits.float()

    def gan() -> dict[str, float | Tensor]:
        # generator
        discriminator.requires_grad_(False)
        optimizer.zero_grad()
        with precision():
            sr = generator(low)
            found, wanted = content(sr), [each.detach() for each in content(high)]
        pixel = F.l1_loss(sr.float(), high)
        looks = torch.zeros((), device=lr.device)
        for ours, theirs, share in zip(found, wanted, shares, strict=True):
            difference = ours.float() - theirs.float()
            looks = looks + share * (difference.square() if squared else difference.abs()).mean()
        if peer.judged == "five":
            real, fake = judge(high).detach(), judge(sr)
            fooled = (_as(real - fake.mean(), 0.0) + _as(fake - real.mean(), 1.0)) / 2
        else:
            fooled = _as(judge(sr), 1.0)
        total = (
            config.loss.pixel * pixel
            + config.loss.content * looks
            + config.loss.adversarial * fooled
        )
        total.backward()
        optimizer.step()

        # discriminator: the halves one after the other
        discriminator.requires_grad_(True)
        judging.zero_grad()
        made = sr.detach().float()
        if peer.judged == "five":
            against = judge(made).detach()
            real = judge(high)
            real_loss = _as(real - against.mean(), 1.0) / 2
            real_loss.backward()
            fake_loss = _as(judge(made) - real.detach().mean(), 0.0) / 2
        else:
            real_loss = _as(judge(high), 1.0)
            real_loss.backward()
            fake_loss = _as(judge(made), 0.0)
        fake_loss.backward()
        judging.step()
        update_average()
        return losses_of(
            {
                "pixel": pixel.detach(),
                "content": looks.detach(),
                "adversarial": fooled.detach(),
                "discriminator": (real_loss + fake_loss).detach(),
            }
        )

    return contestant(gan, generator=generator, discriminator=discriminator)


@contextlib.contextmanager
def _rounding(peer: Peer) -> Iterator[None]:
    """Let float32 products on a GPU round to TF32 or not, inside."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = peer.tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


def _as(logits: Tensor, truth: float) -> Tensor:
    """Cross-entropy of logits against one label."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
