"""Where the milliseconds of a step go: its parts, run and timed one by one.

A part runs outside its step, so the parts need not add up to it: what a step shares between them (one
pass through the generator, gradients added up) is paid by the part that is named for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.networks.discriminator import normalised
from trainer.optim import update_average
from trainer.state import TrainState

Images = Float[Tensor, "b 3 h w"]


def parts(
    state: TrainState, config: Config, lr: Images, hr: Images, bf16: bool
) -> dict[str, Callable[[], object]]:
    """The parts of a state's step; they change its weights as training would."""
    autocast = torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16)

    def generate() -> Tensor:
        with autocast:
            sr: Tensor = state.generator(lr)
        return sr

    def through_generator() -> None:
        state.gradients.flat.zero_()
        generate().float().sub(hr).abs().mean().backward()

    def average() -> None:
        target = state.weights if state.averaged is None else state.averaged
        update_average(
            [target], [state.weights], halflife=1e4, batch_size=len(lr), patches_seen=1_000_000
        )

    found: dict[str, Callable[[], object]] = {
        "generator forward": generate,
        "generator forward and backward": through_generator,
        "generator's optimiser": state.optimizer.step,
        "average": average,
    }
    if state.adversary is None:
        return found
    discriminator, content = state.adversary.discriminator, state.adversary.content

    def image_gradient(network: nn.Module) -> None:
        sr = hr.detach().clone().requires_grad_()
        with autocast:
            seen = network(sr)
        maps = seen if isinstance(seen, list) else [seen]
        torch.autograd.grad(sum(each.float().square().mean() for each in maps), sr)

    def features_of_hr() -> None:
        with torch.no_grad(), autocast:
            content(hr)

    def judge_for_generator() -> None:
        discriminator.eval().requires_grad_(False)
        with normalised(discriminator):
            image_gradient(discriminator)

    def train_discriminator() -> None:
        assert state.adversary is not None
        discriminator.train().requires_grad_(True)
        state.adversary.gradients.flat.zero_()
        with normalised(discriminator), autocast:
            logits = discriminator(torch.cat((hr, hr)))
        logits.float().square().mean().backward()

    return found | {
        "VGG of HR": features_of_hr,
        "VGG of SR and back": lambda: image_gradient(content),
        "discriminator in the generator's step": judge_for_generator,
        "discriminator's own step": train_discriminator,
        "discriminator's optimiser": state.adversary.optimizer.step,
    }
