"""Each kind of adversarial loss against float64 formulas, its gradient's way, and training with it."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from trainer.config.schema import AdversarialKind
from trainer.losses.adversarial import (
    discriminator_confidence,
    discriminator_loss,
    generator_adversarial_loss,
    r1_penalty,
)

KINDS = get_args(AdversarialKind)


LOGITS = [-9.0, -1.5, 0.0, 0.25, 7.0]


REAL = np.array([3.0, -0.5, 1.25, 0.1, -4.0, 8.0])


FAKE = np.array([-2.0, 0.75, -0.3, 4.0, -7.5, 0.9])


def d(logit):
    return 1 / (1 + np.exp(-logit))


def references(real, fake):
    """(generator's loss, discriminator's) of each kind, as its paper writes it."""
    real_over_fake, fake_over_real = d(real - fake.mean()), d(fake - real.mean())
    eq4 = -np.log(d(real)).mean() - np.log(1 - d(fake)).mean()
    return {
        "non-saturating": (-np.log(d(fake)).mean(), eq4),
        "saturating": (np.log(1 - d(fake)).mean(), eq4),
        "relativistic": (
            (-np.log(1 - real_over_fake).mean() - np.log(fake_over_real).mean()) / 2,
            (-np.log(real_over_fake).mean() - np.log(1 - fake_over_real).mean()) / 2,
        ),
        "hinge": (
            -fake.mean(),
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
        ),
        "least-squares": (
            0.5 * ((fake - 1) ** 2).mean(),
            0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
        ),
    }


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_its_paper_writes(kind, shape):
    real, fake = (torch.tensor(each).float().reshape(shape) for each in (REAL, FAKE))
    generators, discriminators = references(REAL, FAKE)[kind]
    found = generator_adversarial_loss(kind, fake, real).item()
    assert found == pytest.approx(generators, rel=1e-5)
    assert discriminator_loss(kind, real, fake).item() == pytest.approx(discriminators, rel=1e-5)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_papers_losses_are_logarithms_of_the_sigmoid(logit):
    real = 1 / (1 + math.exp(-logit))
    fake = 1 / (1 + math.exp(logit))  # 1 - real without cancellation
    at, zero = torch.tensor([logit]), torch.zeros(1)
    found = generator_adversarial_loss("non-saturating", at).item()
    assert found == pytest.approx(-math.log(real), rel=1e-5)
    half = math.log(0.5)
    for pair, wanted in (((at, zero), -math.log(real)), ((zero, at), -math.log(fake))):
        found = discriminator_loss("non-saturating", *pair).item()
        assert found == pytest.approx(wanted - half, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_stay_finite_and_in_float32_where_a_sigmoid_would_not(kind):
    far = torch.tensor([-200.0, 200.0], dtype=torch.bfloat16)
    for loss in (generator_adversarial_loss(kind, far, far), discriminator_loss(kind, far, far)):
        assert loss.isfinite()
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(("kind", "gradient"), [("non-saturating", -1.0), ("saturating", -2e-9)])
def test_only_the_saturating_form_stops_learning_while_the_discriminator_wins(kind, gradient):
    logit = torch.tensor([-20.0], requires_grad=True)
    generator_adversarial_loss(kind, logit).backward()
    assert logit.grad.item() == pytest.approx(gradient, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_pushes_fake_up_for_the_generator_and_down_for_the_discriminator(kind):
    real, fake = torch.zeros(4), torch.zeros(4, requires_grad=True)
    generator_adversarial_loss(kind, fake, real).backward()
    assert (fake.grad < 0).all()
    real, fake = (torch.zeros(4, requires_grad=True) for _ in range(2))
    discriminator_loss(kind, real, fake).backward()
    assert (real.grad < 0).all()
    # least squares wants 0 for fake, which is where these stand
    assert (fake.grad == 0).all() if kind == "least-squares" else (fake.grad > 0).all()


def test_a_relativistic_discriminator_believes_in_differences_and_any_other_in_its_logits():
    real, fake = torch.tensor([5.0, 7.0]), torch.tensor([3.0, 5.0])
    for kind in KINDS:
        shift = (4.0, 6.0) if kind == "relativistic" else (0.0, 0.0)
        found = [each.item() for each in discriminator_confidence(kind, real, fake)]
        wanted = [
            d((each - by).numpy()).mean() for each, by in zip((real, fake), shift, strict=True)
        ]
        assert found == pytest.approx(wanted)


def test_r1_is_half_the_squared_gradient_of_each_patch():
    random = torch.Generator().manual_seed(3)
    first = torch.randn(3 * 4 * 4, 5, generator=random).double()
    second = torch.randn(5, generator=random).double()
    patches = torch.rand(2, 3, 4, 4, generator=random).double()
    logits = (patches.requires_grad_().flatten(1) @ first).tanh() @ second
    found = r1_penalty(logits, patches).item()
    wanted = 0.0
    for patch in patches.detach().numpy().reshape(2, -1):
        slope = 1 - np.tanh(patch @ first.numpy()) ** 2
        wanted += 0.5 * ((first.numpy() @ (slope * second.numpy())) ** 2).sum() / 2
    assert found == pytest.approx(wanted, rel=1e-6)


def test_r1_of_a_map_of_logits_is_that_of_their_mean():
    patches = torch.rand(2, 3, 4, 4).requires_grad_()
    logits = patches.square().sum(1, keepdim=True)
    found = r1_penalty(logits, patches).item()
    wanted = 0.5 * (2 * patches.detach().double() / 16).square().sum().item() / 2
    assert found == pytest.approx(wanted, rel=1e-5)
