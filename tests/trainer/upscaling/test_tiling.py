from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import UsrganError
from trainer.upscaling.tiling import blend_weights, split_axis, upscale_tiled

CPU = torch.device("cpu")


class Sharpen(nn.Module):
    """Looks two LR pixels around, then enlarges twice."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        kernel = torch.rand(3, 3, 5, 5, generator=generator)
        self.register_buffer("kernel", kernel / kernel.sum((1, 2, 3), keepdim=True))
        self.shapes: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append((x.shape[2], x.shape[3]))
        return F.interpolate(F.conv2d(x, self.kernel, padding=2), scale_factor=2, mode="nearest")


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def upscale(
    pixels: np.ndarray, module: nn.Module, *, tile: int = 32, overlap: int = 8
) -> np.ndarray:
    return upscale_tiled(module, pixels, scale=2, tile=tile, overlap=overlap, device=CPU)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 63, 64, 65, 100, 257, 1000])
@pytest.mark.parametrize("overlap", [0, 1, 6, 8])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_cover_an_axis_and_their_weights_make_one(length, overlap, scale):
    axis = split_axis(length, tile=32, overlap=overlap)
    assert axis[0].start == 0
    assert axis[-1].stop == length
    assert {span.stop - span.start for span in axis} == {min(length, 32)}
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(axis))
    total = np.zeros(length * scale)
    for number, span in enumerate(axis):
        total[span.start * scale : span.stop * scale] += blend_weights(axis, number, scale=scale)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(70, 90), (32, 32), (33, 31), (20, 200), (1, 1), (1, 77), (129, 5)]
)
def test_tiles_equal_the_whole_picture(shape):
    pixels, module = picture(*shape), Sharpen()
    whole = module(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    made = upscale(pixels, module)
    np.testing.assert_array_equal(made, np.rint(whole.clamp(0, 1).numpy() * 255).astype(np.uint8))


def test_memory_is_bounded_by_the_tile():
    module = Sharpen()
    upscale(picture(150, 210), module)
    assert set(module.shapes) == {(32, 32)}


def test_a_narrow_overlap_leaves_no_seam():
    """Edges that a tile does not see differ by as little as the blend leaves."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    made = upscale(pixels, Sharpen(), overlap=6)
    inner = made[8:-8, 8:-8].astype(int)
    assert np.abs(np.diff(inner, axis=0)).max() == np.abs(np.diff(inner, axis=1)).max() == 0


class Greedy(Sharpen):
    """Runs out of memory above 20 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)

    limit = 20


def test_out_of_memory_halves_the_tile():
    greedy = Greedy()
    np.testing.assert_array_equal(
        upscale(picture(70, 70), greedy, tile=64, overlap=16)[20:30],
        upscale(picture(70, 70), Sharpen(), tile=16, overlap=4)[20:30],
    )
    assert max(greedy.shapes) <= (20, 20)


def test_no_memory_at_all_is_one_line():
    greedy = Greedy()
    greedy.limit = 2
    with pytest.raises(UsrganError, match="does not fit into the device's memory"):
        upscale(picture(70, 70), greedy)
