"""Winograd's algorithm against the convolution that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from trainer.networks.convolution import Conv3x3, Conv4x4, shuffled
from trainer.networks.planes import HALVING, KEEPING
from trainer.networks.rrdb import SLOPE, DenseBlock
from trainer.networks.winograd import chain, fits, halved
from trainer.speed import missing_kernels

SINGLE, DENSE = [(64, 48)], [(32, 16), (48, 16), (64, 16), (80, 16), (96, 32)]
HALF = torch.bfloat16
needs_kernels = pytest.mark.skipif(bool(missing_kernels()), reason=missing_kernels())


def autocast(*, enabled: bool = True):
    return torch.autocast("cpu", HALF, enabled=enabled)


def last_inside(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def direct(x, weights, biases, *, slope=1.0, last_slope=1.0, tiling=KEEPING):
    seen = [x]
    for weight, bias in zip(weights, biases, strict=True):
        out = F.conv2d(torch.cat(seen, 1), weight, bias, padding=1, stride=tiling.stride)
        seen.append(F.leaky_relu(out, slope))
    return F.leaky_relu(out, last_slope)


def winograds(x, weights, biases, *, last_slope=1.0, tiling=KEEPING, **settings):
    if tiling is HALVING:
        return halved(x, *weights, *biases, last_slope)
    return chain(x, weights, biases, last_slope=last_slope, **settings)


def gradients(way, x, weights, biases, wanted, *, dtype: torch.dtype, **settings):
    """What a way makes of x, and the gradients of x, weights and biases."""
    leaves = [each.detach().to(dtype).requires_grad_() for each in (x, *weights, *biases)]
    count = len(weights)
    out = way(leaves[0], leaves[1 : count + 1], leaves[count + 1 :], **settings)
    return [out, *torch.autograd.grad(out, leaves, wanted.to(out.dtype))]


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def random_chain(layers, *, images: int, height: int, width: int, tiling=KEEPING):
    """Pictures, weights and biases of layers of (inputs, outputs), and a gradient."""
    side = tiling.kernel
    weights = [torch.randn(n, c, side, side) * (2 / (side**2 * c)) ** 0.5 for c, n in layers]
    biases = [torch.randn(n) for _, n in layers]
    x = last_inside(torch.randn(images, layers[0][0], height, width).to(HALF))
    out = (images, layers[-1][1], height // tiling.stride, width // tiling.stride)
    return x, weights, biases, last_inside(torch.randn(out).to(HALF))


@needs_kernels
@pytest.mark.parametrize(
    ("tiling", "layers", "images", "height", "width"),
    [
        (KEEPING, SINGLE, 1, 2, 2),
        (KEEPING, SINGLE, 3, 6, 10),
        (KEEPING, SINGLE, 2, 34, 64),  # more tiles than are worked on at once
        (KEEPING, SINGLE, 5, 24, 32),
        (KEEPING, DENSE, 2, 16, 12),
        (KEEPING, DENSE, 3, 32, 40),
        (HALVING, SINGLE, 1, 4, 4),
        (HALVING, SINGLE, 3, 8, 20),
        (HALVING, SINGLE, 2, 100, 96),
        (HALVING, SINGLE, 5, 48, 64),
    ],
)
def test_a_chain_and_its_gradients_are_those_of_float64_within_rounding(
    tiling, layers, images, height, width
):
    torch.manual_seed(0)
    given = random_chain(layers, images=images, height=height, width=width, tiling=tiling)
    settings = {"slope": SLOPE} if len(layers) > 1 else {"tiling": tiling}
    exact = gradients(direct, *given, **settings, dtype=torch.float64)
    found = gradients(winograds, *given, **settings, dtype=torch.float32)
    rounded = gradients(direct, *given, **settings, dtype=HALF)
    least = 0.004 if layers is SINGLE else 0.02
    for ours, theirs, truth in zip(found, rounded, exact, strict=True):
        assert apart(ours, truth) < 2.5 * max(apart(theirs, truth), least)


@needs_kernels
@pytest.mark.parametrize("tiling", [KEEPING, HALVING], ids=["3x3", "4x4"])
@pytest.mark.parametrize("slope", [0.25, 0.0])  # others torch rounds once more
def test_a_leaky_relu_behind_the_last_convolution_is_that_of_torch(tiling, slope):
    torch.manual_seed(9)
    given = random_chain(SINGLE, images=2, height=16, width=12, tiling=tiling)
    x, weights, biases, wanted = given
    found = gradients(winograds, *given, last_slope=slope, tiling=tiling, dtype=torch.float32)
    out = winograds(x, weights, biases, tiling=tiling)
    assert torch.equal(found[0], F.leaky_relu(out, slope))
    through = torch.where(out > 0, wanted, slope * wanted)
    apart_from = x, weights, biases, through
    alone = gradients(winograds, *apart_from, tiling=tiling, dtype=torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found[1:], alone[1:], strict=True))


@needs_kernels
@pytest.mark.parametrize("tiling", [KEEPING, HALVING], ids=["3x3", "4x4"])
def test_small_integers_come_out_to_the_bit(tiling):
    """Kernels of multiples of 4 stay integers, and integers up to 256 are what bf16 can hold."""
    torch.manual_seed(1)
    rare = torch.tensor([0.0] * 30 + [1.0, -1.0])

    def sparse(*shape: int) -> torch.Tensor:
        return rare[torch.randint(len(rare), shape)]

    x = last_inside(sparse(2, 32, 28, 20).to(HALF))
    wanted = last_inside(sparse(2, 64, 28 // tiling.stride, 20 // tiling.stride).to(HALF))
    weight = 4 * sparse(64, 32, tiling.kernel, tiling.kernel)
    given = x, [weight], [torch.arange(-32.0, 32.0)], wanted
    exact = gradients(direct, *given, tiling=tiling, dtype=torch.float64)
    found = gradients(winograds, *given, tiling=tiling, dtype=torch.float32)
    assert all(each.abs().max() > 3 for each in exact)
    for ours, truth in zip(found, exact, strict=True):
        assert torch.equal(ours.double(), truth)


@needs_kernels
def test_the_same_bits_every_time_and_on_two_threads():
    torch.manual_seed(2)
    given = random_chain(DENSE, images=3, height=32, width=16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 2):
            torch.set_num_threads(count)
            found.append(gradients(winograds, *given, slope=SLOPE, dtype=torch.float32))
    finally:
        torch.set_num_threads(threads)
    for once, again in (found[:2], found[2:]):
        assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    assert torch.equal(found[0][0], found[2][0])


@needs_kernels
def test_what_is_not_finite_stays_so():
    x = torch.zeros(1, 32, 8, 8, dtype=HALF)
    x[0, 3, 4, 4] = float("nan")
    with torch.no_grad():
        out = chain(last_inside(x), [torch.ones(64, 32, 3, 3)], [None])
    assert out[0, :, 4, 4].isnan().all()
    assert out[0, :, 0, 0].isfinite().all()


def test_only_what_gains_is_winograds():
    x, weight = torch.zeros(2, 64, 16, 20), torch.zeros(64, 64, 3, 3)
    assert not fits(x, [weight])  # float32
    with torch.autocast("cpu", torch.float16):
        assert not fits(x, [weight])
    with autocast():
        assert fits(x, [weight])
        assert not fits(x[..., :15], [weight])
        assert fits(x[..., :18], [weight])
        assert fits(x, [weight], HALVING)
        assert not fits(x[..., :18], [weight], HALVING)
        assert not fits(x[:, :40], [weight[:, :40]])
        assert fits(x[:, :32], [weight[:32, :32]])
        assert not fits(x[:, :16], [weight[:32, :16]])


@needs_kernels
def test_halving_is_winograds_under_autocast_alone():
    torch.manual_seed(10)
    conv, x = Conv4x4(64, 64), torch.randn(2, 64, 16, 20)
    wanted = F.leaky_relu(conv(x), SLOPE)
    conv.winograd = True
    assert torch.equal(conv(x, SLOPE), wanted)
    with autocast():
        found = conv(x, SLOPE)
        odd = conv(x[..., :18], SLOPE)
    assert type(found.grad_fn).__name__ == "HalvedBackward"
    assert apart(found, wanted.double()) < 0.01
    assert odd.shape == (2, 64, 8, 9)


@needs_kernels
def test_outside_autocast_a_network_computes_as_without():
    torch.manual_seed(3)
    conv, x = Conv3x3(64, 64), torch.randn(2, 64, 32, 32)
    wanted = conv(x)
    with autocast():
        rounded = conv(x)
    conv.winograd = True
    assert torch.equal(conv(x), wanted)
    with autocast():
        found = conv(x)
    assert not torch.equal(found, rounded)
    assert apart(found, wanted.double()) < 0.01


@needs_kernels
def test_a_dense_block_is_one_chain_and_is_what_it_was():
    torch.manual_seed(4)
    block, x = DenseBlock(features=32, growth=16, norm="none"), torch.randn(2, 32, 32, 32)
    for conv in block.children():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
    exact = block.double()(x.double())
    for conv in block.float().children():
        conv.winograd = isinstance(conv, Conv3x3)
    with autocast():
        out = block(last_inside(x))
    assert type(out.grad_fn).__name__ == "AddBackward0"
    names = {type(each).__name__ for each, _ in out.grad_fn.next_functions if each is not None}
    names |= {
        type(deep).__name__
        for each, _ in out.grad_fn.next_functions
        if each is not None
        for deep, _ in each.next_functions
    }
    assert "ChainBackward" in names
    assert apart(out, exact) < 0.01


@needs_kernels
@pytest.mark.parametrize("factor", [2, 3])
def test_pixels_are_shuffled_as_torch_does(factor):
    torch.manual_seed(8)
    conv, x = Conv3x3(32, 32 * factor**2), last_inside(torch.randn(2, 32, 16, 12))
    found = []
    for winograd in (True, False):
        conv.winograd = True
        with autocast():
            out = shuffled(conv, x, factor) if winograd else F.pixel_shuffle(conv(x), factor)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(conv.parameters()))])
    for ours, torchs in zip(*found, strict=True):
        assert torch.equal(ours, torchs)


@needs_kernels
def test_kept_kernels_follow_their_weights():
    torch.manual_seed(5)
    conv, x = Conv3x3(64, 64).requires_grad_(False), torch.randn(1, 64, 16, 16)
    conv.winograd = True
    with autocast():
        before, again = conv(x), conv(x)
        conv.weight.mul_(2)
        conv.bias.mul_(2)
        after = conv(x)
        conv.weight.data, conv.bias.data = conv.weight.data / 2, conv.bias.data / 2
        replaced = conv(x)
    assert torch.equal(before, again)
    assert torch.equal(after, 2 * before)
    assert torch.equal(replaced, before)


@needs_kernels
def test_a_pass_is_one_power_iteration():
    torch.manual_seed(6)
    x, vectors = torch.randn(2, 64, 16, 16), []
    for winograd in (False, True):
        torch.manual_seed(7)
        conv = spectral_norm(Conv3x3(64, 64)).train()
        conv.winograd = winograd
        with autocast():
            conv(x)
        vectors.append(conv.parametrizations.weight[0]._u.clone())
    assert torch.equal(*vectors)


@needs_kernels
@pytest.mark.parametrize("tiling", [KEEPING, HALVING], ids=["3x3", "4x4"])
def test_a_second_derivative_is_refused(tiling):
    """torch's `once_differentiable` would take this sum's for a constant."""
    given = random_chain(SINGLE, images=1, height=8, width=8, tiling=tiling)
    x, weights, biases, _ = given
    out = winograds(x.requires_grad_(), weights, biases, tiling=tiling)
    with pytest.raises(NotImplementedError, match="differentiated once only"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


@needs_kernels
def test_what_is_empty_strided_or_of_inference_mode_is_as_ever():
    torch.manual_seed(11)
    conv = Conv3x3(64, 64)
    x, wanted = torch.randn(1, 64, 8, 8), conv(torch.zeros(0, 64, 8, 8))
    conv.winograd = True
    with autocast():
        assert conv(torch.zeros(0, 64, 8, 8)).shape == wanted.shape
        bias = torch.randn(64, 2)
        found = chain(x, [conv.weight], [bias[:, 0]])
        assert torch.equal(found, chain(x, [conv.weight], [bias[:, 0].clone()]))
        normalised = spectral_norm(Conv3x3(64, 64)).eval()
        normalised.winograd = True
        with torch.inference_mode():
            assert normalised(x).isfinite().all()
