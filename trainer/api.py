"""The Python API: load a generator, upscale an image, score the result. `import trainer` hands these out lazily."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shards.errors import UsageError
from shards.format.png import RGB8
from trainer.device import choose_device
from trainer.evaluation import metrics
from trainer.upscaling.tiling import upscale_tiled
from trainer.upscaling.upscale import DEFAULT_OVERLAP, DEFAULT_TILE
from trainer.weights import generators


@dataclass(frozen=True)
class Generator:
    """A super-resolution network that is ready to upscale."""

    module: nn.Module
    """In evaluation mode and float32: RGB [B 3 h w] in [0, 1] to [B 3 h*scale w*scale] around [0, 1]."""
    scale: int
    name: str
    """Name of the file without its ending."""
    metadata: dict[str, str]
    """Architecture, preset, stage, patches seen and scores, as the file has them."""
    device: torch.device

    def upscale(
        self, image: RGB8, *, tile: int = DEFAULT_TILE, overlap: int = DEFAULT_OVERLAP
    ) -> RGB8:
        """Return an RGB image, uint8 [h w 3], enlarged to [h*scale w*scale 3].

        Args:
            image: RGB of any size.
            tile: side of a tile in pixels of `image`; memory grows with its square, and it halves if memory runs out.
            overlap: pixels that neighbouring tiles share, at most a quarter of `tile`.

        Raises:
            UsageError: `image` is not uint8 [h w 3].
            UsrganError: the device lacks the memory for the smallest tile.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype.name != "uint8":
            shape, dtype = list(image.shape), image.dtype
            raise UsageError(f"image: is {dtype} {shape}; pass RGB as uint8 [height, width, 3]")
        return upscale_tiled(
            self.module,
            image,
            scale=self.scale,
            tile=tile,
            overlap=min(overlap, tile // 4),
            device=self.device,
        )


def load_generator(path: str | Path, *, device: str = "auto") -> Generator:
    """Load a generator from a .safetensors file that train-sr wrote, or one with BasicSR's names.

    Args:
        path: file of weights; architecture and scale follow from its names and shapes.
        device: `cpu`, `cuda`, or `auto`, which takes a GPU where torch sees one.

    Raises:
        UsageError: no such file, an unknown network, or no such device.
        DamagedData: the file is damaged.
    """
    chosen = choose_device(device)
    loaded = generators.load_generator(Path(path), device=chosen)
    return Generator(loaded.module, loaded.scale, loaded.name, loaded.metadata, chosen)


def score(sr: RGB8, hr: RGB8, *, crop: int = 4) -> metrics.Scores:
    """Return PSNR and SSIM of an image by the protocol of the field's tables (MATLAB's, on Y and on RGB).

    Args:
        sr: the upscaled image, uint8 [h w 3].
        hr: the original of the same size.
        crop: pixels left out at each border; the field crops the scale.

    Raises:
        UsrganError: the sizes differ, or the image is too small to score.
    """
    return metrics.score(sr, hr, crop=crop)
