"""The training step of BasicSR in our own words: the peer of `bench-sr train`.

BasicSR v1.4.2 (`models/sr_model.py`, `srgan_model.py`, `esrgan_model.py`) uses eager PyTorch and contiguous tensors,
reads losses with `.item()` in each step, and updates the EMA in a Python loop over all parameters. Its ESRGAN passes
five batches through the discriminator in a step and three times back; each pass in training mode runs its own power
iteration. The networks are ours with the same weights, as are Adam's settings and the weights of the losses.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.bench.equivalence import Candidate
from trainer.config.schema import Config
from trainer.losses.content import parse_layers
from trainer.training.acceleration import return_freed_memory
from trainer.training.optim import build_adam
from trainer.training.state import TrainState

Images = Float[Tensor, "b 3 h w"]
N = TypeVar("N", bound=nn.Module)
EMA_DECAY = 0.999


class Peer(msgspec.Struct, frozen=True):
    """Settings of a peer."""

    autocast: bool = False
    """bf16 autocast; BasicSR has none."""
    channels_last: bool = False
    tf32: bool = False
    """True: float32 products on a GPU may round their factors to TF32."""
    judged: Literal["five", "three"] = "five"
    """Batches through the discriminator: five of relativistic ESRGAN, or three of SRGAN."""
    reads_losses: bool = True
    """True: `.item()` on each loss of each step."""


PEERS: dict[str, Peer] = {
    "peer-fp32": Peer(),
    "peer-tf32": Peer(tf32=True),
    "peer-amp": Peer(autocast=True),
    "peer-amp-cl": Peer(autocast=True, channels_last=True),
    "peer-lean": Peer(autocast=True, channels_last=True, judged="three", reads_losses=False),
}
"""peer-lean is not published: it is BasicSR as a careful user would improve it."""


def build_peer(peer: Peer, state: TrainState, config: Config, lr: Images, hr: Images) -> Candidate:
    """A step on copies of a state's networks and always the same batch.

    The networks must be in plain form, because a copy shares their code.
    """
    trainer = PeerTrainer(peer, state, config, lr, hr)
    networks: dict[str, nn.Module] = {"generator": trainer.generator}
    if trainer.discriminator is not None:
        networks["discriminator"] = trainer.discriminator
    return Candidate(
        step=trainer.step,
        networks=networks,
        rounded=peer.autocast or peer.tf32,
        kind="relativistic" if peer.judged == "five" else "non-saturating",
        peer=True,
    )


class PeerTrainer:
    """Networks, optimisers and batch of a peer."""

    def __init__(
        self, peer: Peer, state: TrainState, config: Config, lr: Images, hr: Images
    ) -> None:
        self.peer, self.loss = peer, config.loss
        layout = torch.channels_last if peer.channels_last else torch.contiguous_format

        def copy_network(network: N) -> N:
            copied: N = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub
            return copied

        self.lr, self.hr = (images.contiguous(memory_format=layout) for images in (lr, hr))
        self.generator = copy_network(state.generator).train()
        self.ema = copy.deepcopy(self.generator)
        self.optimizer = build_adam(config.optim, self.generator.parameters())
        self.discriminator: nn.Module | None = None
        if state.adversary is not None:
            self.discriminator = copy_network(state.adversary.discriminator).train()
            self.content = copy_network(state.adversary.content)
            self.layer_weights = list(parse_layers(config.content.layer).values())
            self.squared = config.content.criterion == "l2"
            self.d_optimizer = build_adam(config.optim, self.discriminator.parameters())

    def step(self) -> dict[str, float | Tensor]:
        """Train on the batch once, with the allocator of a process without `speed.allocator`; returns the losses."""
        return_freed_memory()
        with _allow_tf32(self.peer.tf32):
            losses = (
                self._step_psnr()
                if self.discriminator is None
                else self._step_gan(self.discriminator)
            )
        read = self.peer.reads_losses
        return {name: loss.item() if read else loss.detach() for name, loss in losses.items()}

    def _step_psnr(self) -> dict[str, Tensor]:
        with self._autocast():
            sr = self.generator(self.lr)
        self.optimizer.zero_grad()
        pixel = F.l1_loss(sr.float(), self.hr)
        pixel.backward()
        self.optimizer.step()
        self._update_ema()
        return {"pixel": pixel}

    def _step_gan(self, discriminator: nn.Module) -> dict[str, Tensor]:
        relativistic = self.peer.judged == "five"

        # generator
        discriminator.requires_grad_(False)
        self.optimizer.zero_grad()
        with self._autocast():
            sr = self.generator(self.lr)
        pixel, content = F.l1_loss(sr.float(), self.hr), self._content_loss(sr)
        if relativistic:
            real, fake = self._judge(self.hr).detach(), self._judge(sr)
            adversarial = (
                _cross_entropy(real - fake.mean(), 0.0) + _cross_entropy(fake - real.mean(), 1.0)
            ) / 2
        else:
            adversarial = _cross_entropy(self._judge(sr), 1.0)
        weights = self.loss
        total = weights.pixel * pixel + weights.content * content
        (total + weights.adversarial * adversarial).backward()
        self.optimizer.step()

        # discriminator, one backward pass per half
        discriminator.requires_grad_(True)
        self.d_optimizer.zero_grad()
        sr = sr.detach().float()
        if relativistic:
            fake = self._judge(sr).detach()
            real = self._judge(self.hr)
            real_loss = _cross_entropy(real - fake.mean(), 1.0) / 2
            real_loss.backward()
            fake_loss = _cross_entropy(self._judge(sr) - real.detach().mean(), 0.0) / 2
        else:
            real_loss = _cross_entropy(self._judge(self.hr), 1.0)
            real_loss.backward()
            fake_loss = _cross_entropy(self._judge(sr), 0.0)
        fake_loss.backward()
        self.d_optimizer.step()
        self._update_ema()
        return {
            "pixel": pixel,
            "content": content,
            "adversarial": adversarial,
            "discriminator": real_loss + fake_loss,
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.lr.device.type, torch.bfloat16, enabled=self.peer.autocast)

    def _judge(self, images: Tensor) -> Tensor:
        assert self.discriminator is not None
        with self._autocast():
            logits: Tensor = self.discriminator(images)
        return logits.float()

    def _content_loss(self, sr: Tensor) -> Tensor:
        with self._autocast():
            sr_maps, hr_maps = self.content(sr), [each.detach() for each in self.content(self.hr)]
        loss = torch.zeros((), device=sr.device)
        for ours, theirs, weight in zip(sr_maps, hr_maps, self.layer_weights, strict=True):
            difference = ours.float() - theirs.float()
            loss = (
                loss + weight * (difference.square() if self.squared else difference.abs()).mean()
            )
        return loss

    def _update_ema(self) -> None:
        live = dict(self.generator.named_parameters())
        for name, average in self.ema.named_parameters():
            average.data.mul_(EMA_DECAY).add_(live[name].data, alpha=1 - EMA_DECAY)


@contextlib.contextmanager
def _allow_tf32(allowed: bool) -> Iterator[None]:
    """Allow float32 products on a GPU to round to TF32, or forbid it, inside the block."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
