"""Public Python interface: load a generator, upscale images, score them; `import trainer` offers these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shards.errors import UsageError
from shards.format.png import RGB8
from trainer.device import choose_device, explain_out_of_memory
from trainer.evaluation import metrics
from trainer.evaluation.metrics import Scores
from trainer.upscaling.tiling import SMALLEST_TILE
from trainer.upscaling.upscale import DEFAULT_OVERLAP, DEFAULT_TILE, build_upscaler
from trainer.weights import generators
from trainer.weights.generators import LoadedGenerator


@dataclass(frozen=True)
class Generator(LoadedGenerator):
    """Generator for inference, as `load_generator` returns it.

    Attributes:
        module: network from float32 RGB [b 3 h w] in [0, 1] to RGB [b 3 h*scale w*scale], in evaluation mode.
        scale: output side over input side: 2, 3, 4 or 8.
        name: name of the weights file without its suffix.
        metadata: metadata of the weights file, such as preset and stage.
    """

    def upscale(self, image: RGB8, *, tile: int | None = None) -> RGB8:
        """Return the upscaled image, as `upscale-sr` computes it: tiled, in float32, rounded to 8 bits.

        Args:
            image: RGB image [h w 3] in 0..255, uint8, of any size.
            tile: side of a tile in pixels, at least 16; smaller tiles need less memory. None takes 256.

        Returns:
            RGB image [h*scale w*scale 3] in 0..255, uint8.

        Raises:
            UsageError: the image or the tile size is not valid.
            UsrganError: the device has too little memory.

        Example:
            image = np.asarray(PIL.Image.open("photo.png").convert("RGB"))
            upscaled = generator.upscale(image, tile=128)
        """
        _check_image(image, name="image")
        side = DEFAULT_TILE if tile is None else tile
        if side < SMALLEST_TILE:
            raise UsageError(f"tile: {tile} is too small; use at least {SMALLEST_TILE}")
        upscaler = build_upscaler(
            self,
            tile=side,
            overlap=min(DEFAULT_OVERLAP, side // 4),
            device=next(self.module.parameters()).device,
        )
        with explain_out_of_memory("image", fix="use a smaller tile"):
            return upscaler(image)


def load_generator(path: Path | str, *, device: torch.device | str = "auto") -> Generator:
    """Return the generator of a weights file; the architecture is detected.

    Args:
        path: `.safetensors` file of `train-sr`, or an RRDBNet with BasicSR's names.
        device: `cpu`, `cuda`, `cuda:1` or `auto`, which uses a GPU if available.

    Raises:
        UsageError: the file does not exist or has no supported generator, or the device is not available.
        DamagedData: the file is damaged.

    Example:
        generator = trainer.load_generator("runs/usrgan/checkpoints/final/gan.safetensors", device="cpu")
    """
    try:
        chosen = choose_device(str(device))
    except RuntimeError:  # torch does not know the name
        raise UsageError(f"device: {device} is unknown; use auto, cpu or cuda") from None
    loaded = generators.load_generator(Path(path), device=chosen)
    return Generator(loaded.module, loaded.scale, loaded.name, loaded.metadata)


def score(sr: RGB8, hr: RGB8, *, crop: int) -> Scores:
    """Return PSNR and SSIM by the protocol of published tables (MATLAB's), on luma and on RGB.

    Args:
        sr: upscaled RGB image [h w 3] in 0..255, uint8.
        hr: ground truth of the same size and type.
        crop: border to leave out at each side, in pixels; by convention the scale.

    Returns:
        `psnr_y` and `psnr_rgb` in dB (at most 100), `ssim_y` and `ssim_rgb` (at most 1).

    Raises:
        UsageError: an image or `crop` is not valid.
        UsrganError: the sizes differ, or the images are too small.

    Example:
        scores = trainer.score(generator.upscale(lr), hr, crop=generator.scale)
        print(f"{scores.psnr_y:.2f} dB")
    """
    _check_image(sr, name="sr")
    _check_image(hr, name="hr")
    if crop < 0:
        raise UsageError(f"crop: {crop} is negative; use the scale")
    return metrics.score(sr, hr, crop=crop)


def _check_image(image: RGB8, *, name: str) -> None:
    """Refuse anything but a non-empty uint8 array [h w 3]."""
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"{name}: is a {type(image).__name__}; pass RGB as uint8 [height, width, 3]"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(
            f"{name}: is {image.dtype} {list(image.shape)}; pass RGB as uint8 [height, width, 3]"
        )
