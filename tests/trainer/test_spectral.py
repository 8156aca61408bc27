"""Spectral normalisation against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trainer.networks.spectral import SpectralNorm, spectral_norm

LAYERS = {
    "convolution": lambda: nn.Conv2d(5, 7, 4, padding=1),
    "channels last": lambda: nn.Conv2d(5, 7, 3).to(memory_format=torch.channels_last),
    "dense": lambda: nn.Linear(6, 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_names_vectors_and_gradients_are_those_of_torch(kind):
    layers = []
    for normalise in (spectral_norm, parametrizations.spectral_norm):
        torch.manual_seed(0)
        layers.append(normalise(LAYERS[kind]()).double())
    for training in (True, False, True):
        for layer in layers:
            layer.train(training)
            layer.zero_grad()
            layer.weight.pow(3).sum().backward()
        stored = [layer.state_dict() for layer in layers]
        assert list(stored[0]) == list(stored[1])
        for ours, theirs in zip(stored[0].values(), stored[1].values(), strict=True):
            assert torch.equal(ours, theirs)
        raw = [layer.parametrizations.weight.original.grad for layer in layers]
        torch.testing.assert_close(*raw, rtol=1e-12, atol=1e-14)
        assert raw[0].any()
        with torch.no_grad():
            for layer in layers:
                layer.parametrizations.weight.original += 0.1


def test_r1_can_differentiate_it_twice():
    torch.manual_seed(1)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    module = SpectralNorm(weight).double().eval()
    assert torch.autograd.gradgradcheck(module, (weight.requires_grad_(),))
