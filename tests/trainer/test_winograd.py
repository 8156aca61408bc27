"""Winograd's algorithm against the convolution that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from trainer import native
from trainer.networks import planes
from trainer.networks.rrdb import SLOPE, DenseBlock
from trainer.networks.winograd import Conv3x3, chain, fits, shuffled
from trainer.speed import missing_kernels

SINGLE, DENSE = [(64, 48)], [(32, 16), (48, 16), (64, 16), (80, 16), (96, 32)]
HALF = torch.bfloat16
needs_kernels = pytest.mark.skipif(bool(missing_kernels()), reason=missing_kernels())


def autocast(*, enabled: bool = True):
    return torch.autocast("cpu", HALF, enabled=enabled)


def last_inside(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def direct(x, weights, biases, *, slope: float = 1.0):
    seen = [x]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = F.conv2d(torch.cat(seen, 1), weight, bias, padding=1)
        seen.append(F.leaky_relu(out, slope) if i < len(weights) - 1 else out)
    return out


def gradients(way, x, weights, biases, wanted, *, slope: float, dtype: torch.dtype):
    """What a way makes of x, and the gradients of x, weights and biases."""
    leaves = [each.detach().to(dtype).requires_grad_() for each in (x, *weights, *biases)]
    count = len(weights)
    out = way(leaves[0], leaves[1 : count + 1], leaves[count + 1 :], slope=slope)
    return [out, *torch.autograd.grad(out, leaves, wanted.to(out.dtype))]


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "images", "height", "width"),
    [
        (SINGLE, 1, 2, 2),
        (SINGLE, 3, 6, 10),
        (SINGLE, 2, 34, 64),  # more tiles than are worked on at once
        (SINGLE, 5, 24, 32),
        (DENSE, 2, 16, 12),
        (DENSE, 3, 32, 40),
    ],
)
def test_a_chain_and_its_gradients_are_those_of_float64_within_rounding(
    shape, images, height, width
):
    torch.manual_seed(0)
    weights = [torch.randn(n, c, 3, 3) * (2 / (9 * c)) ** 0.5 for c, n in shape]
    biases = [torch.randn(n) for _, n in shape]
    x = last_inside(torch.randn(images, shape[0][0], height, width).to(HALF))
    wanted = last_inside(torch.randn(images, shape[-1][1], height, width).to(HALF))
    given = x, weights, biases, wanted
    exact = gradients(direct, *given, slope=SLOPE, dtype=torch.float64)
    found = gradients(chain, *given, slope=SLOPE, dtype=torch.float32)
    rounded = gradients(direct, *given, slope=SLOPE, dtype=HALF)
    least = 0.004 if shape is SINGLE else 0.02
    for ours, theirs, truth in zip(found, rounded, exact, strict=True):
        assert apart(ours, truth) < 2.5 * max(apart(theirs, truth), least)


@needs_kernels
def test_small_integers_come_out_to_the_bit():
    """Kernels of multiples of 4 stay integers, and integers up to 256 are what bf16 can hold."""
    torch.manual_seed(1)
    rare = torch.tensor([0.0] * 30 + [1.0, -1.0])

    def sparse(*shape: int) -> torch.Tensor:
        return rare[torch.randint(len(rare), shape)]

    x, wanted = (last_inside(sparse(2, c, 14, 18).to(HALF)) for c in (32, 64))
    weight, bias = 4 * sparse(64, 32, 3, 3), torch.arange(-32.0, 32.0)
    given = x, [weight], [bias], wanted
    exact = gradients(direct, *given, slope=1.0, dtype=torch.float64)
    found = gradients(chain, *given, slope=1.0, dtype=torch.float32)
    assert all(each.abs().max() > 3 for each in exact)
    for ours, truth in zip(found, exact, strict=True):
        assert torch.equal(ours.double(), truth)


@needs_kernels
def test_the_same_bits_every_time_and_on_two_threads():
    torch.manual_seed(2)
    weights = [torch.randn(n, c, 3, 3) / 20 for c, n in DENSE]
    biases = [torch.randn(n) for _, n in DENSE]
    x, wanted = (last_inside(torch.randn(3, 32, 32, 16).to(HALF)) for _ in range(2))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 2):
            torch.set_num_threads(count)
            given = x, weights, biases, wanted
            found.append(gradients(chain, *given, slope=SLOPE, dtype=torch.float32))
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
    x, weight = torch.zeros(2, 64, 16, 16), torch.zeros(32, 64, 3, 3, requires_grad=True)
    assert not fits(x, [weight])  # float32
    with torch.autocast("cpu", torch.float16):
        assert not fits(x, [weight])
    with autocast():
        assert fits(x, [weight])
        assert not fits(x[..., :15], [weight])
        assert not fits(x[..., :8, :8], [weight])
        assert fits(x[..., :8, :8], [weight.detach()])
        assert not fits(x[:, :40], [weight[:, :40]])
        assert not fits(x[:, :16], [weight[:, :16]])


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
    assert "_ChainBackward" in names
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


def test_a_machine_without_compiler_or_instructions_says_so(monkeypatch):
    source = planes.__file__.replace(".py", ".c")
    monkeypatch.setenv("CC", "no-such-compiler")
    load = native.load.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(native.NotHere, match=r"there is no C compiler; install gcc"):
        load(native.Path(source))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(native.NotHere, match="no AVX512-BF16"):
        load(native.Path(source))


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken.c"
    broken.write_text("int main( {")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(native.NotHere, match=r"cannot compile broken.c \(.+\)"):
        native.load.__wrapped__(broken)
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
def test_kernels_are_compiled_once_and_kept(monkeypatch, tmp_path):
    source = native.Path(planes.__file__).with_suffix(".c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.__wrapped__(source)
    (kept,) = (tmp_path / "usrgan").iterdir()
    made = kept.stat().st_mtime_ns
    monkeypatch.setattr(native, "_compiled", None)
    assert native.load.__wrapped__(source).tiles_in
    assert kept.stat().st_mtime_ns == made


@needs_kernels
def test_kept_kernels_that_are_damaged_are_compiled_anew(monkeypatch, tmp_path):
    source = native.Path(planes.__file__).with_suffix(".c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as once:  # what is loaded must not be written over
        once.setattr(native.ctypes, "CDLL", lambda path: native.Path(path).resolve(strict=True))
        kept = native.load.__wrapped__(source)
    whole = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[:100])
    assert native.load.__wrapped__(source).tiles_in
    assert kept.stat().st_size == whole


@needs_kernels
def test_an_account_without_a_home_compiles_for_itself(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", homeless)
    assert native.load.__wrapped__(native.Path(planes.__file__).with_suffix(".c")).tiles_in


@needs_kernels
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "usrgan").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = native.Path(planes.__file__).with_suffix(".c")
    assert native.load.__wrapped__(source).tiles_in
