"""Everything that decides the bytes of a data set: options of `prep-shards` and versions of libraries."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import isal
import msgspec
import numpy as np
import simplejpeg

from shards.errors import UsageError
from shards.format.codec import Codec
from shards.format.manifest import Option
from shards.images import resize
from shards.images.resize import Kernel

SCALES = (2, 3, 4, 8)
MAX_BLOCKINESS = 1.3
"""A photo whose blockiness (`accept.measure_blockiness`) is above this is scaled by `pre_scale` first."""
FLAT_DETAIL = 4.0
"""A patch is flat when the standard deviation of its luma is below this, grey levels."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting that the written bytes depend on."""

    hr_size: int = 128
    """Side of an HR patch, pixels; a multiple of the scale."""
    scale: int = 4
    patches_per_image: int = 200
    """Random patches of a photo (fewer of a small one: `patches.positions`); 0 with a grid."""
    store_larger: int = 0
    """How much larger patches are stored, pixels: training crops `hr_size` out of them at random."""
    grid: int = 0
    """Distance of the patches of a regular grid, pixels; 0 for random positions."""
    kernel: Kernel = "pillow"
    """Implementation of the antialiased bicubic that makes LR."""
    degrade: Literal["bicubic", "realesrgan"] = "bicubic"
    """LR as it is taught from photos that are clean, or blurred, noisy and compressed (`degrade`)."""
    lr_from: Literal["image", "patch"] = "image"
    """Downscale the whole photo and cut (the paper's decoupled way), or each patch by itself."""
    codec: Codec = "png"
    """How patches are stored."""
    keep_flat: float = 0.05
    """Share of the patches with a luma deviation below FLAT that is kept: skies and walls in moderation."""
    min_detail: float = 0.0
    """Luma deviation, grey levels, below which no patch is kept."""
    alpha: Literal["refuse", "drop"] = "refuse"
    """Treatment of photos with transparent pixels."""
    icc: Literal["convert", "ignore"] = "convert"
    """Whether photos with a colour profile are turned to sRGB."""
    max_blockiness: float = 0.0
    """Photos that show their JPEG's blocks more than this are refused; 0 for none."""
    pre_scale: float = 1.0
    """1, 1/2 or 1/4: what blocky photos are scaled by before they are cut."""
    lr_dir: str = ""
    """Digest of the list of official LR images, if those are taken."""
    max_megapixels: float = 200.0
    seed: int = 0
    samples_per_shard: int = 4096
    val_fraction: float = 0.05
    """Share of the photos that validate, where neither the folders nor a list say which."""
    val_list: tuple[str, ...] = ()
    """Names of the photos that validate."""
    similar: Literal["drop", "keep"] = "drop"
    """Treatment of near-duplicates: take one, or all of them in one split."""
    exclude_like: str = ""
    """Digest of the test pictures that no photo may resemble."""

    @property
    def stored_size(self) -> int:
        """Side of an HR patch as stored, pixels."""
        return self.hr_size + self.store_larger

    @property
    def flags_blocks(self) -> bool:
        """Whether the blockiness of photos is measured and stored in each sample's JSON."""
        return self.max_blockiness > 0 or self.pre_scale < 1


def check_options(options: Options) -> None:
    """Refuse what cannot be.

    Raises:
        UsageError: naming the option.
    """
    for name, value in msgspec.to_builtins(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: use a number")
    scale = options.scale
    if scale not in SCALES:
        raise UsageError(f"--scale {scale}: use one of {', '.join(map(str, SCALES))}")
    if options.hr_size < 8 * scale or options.hr_size % scale:
        raise UsageError(
            f"--hr-size {options.hr_size}: use a multiple of the scale {scale}, at least {8 * scale}"
        )
    if options.grid % scale:
        near = max(scale, round(options.grid / scale) * scale)
        raise UsageError(
            f"--grid {options.grid}: LR patches lie on whole pixels, so use a multiple of the scale, such as {near}"
        )
    if not 0 <= options.val_fraction < 1:
        raise UsageError(f"--val-fraction {options.val_fraction}: use a share from 0 up to below 1")
    if options.min_detail < 0:
        raise UsageError(f"--min-detail {options.min_detail:g}: use 0 or more grey levels")
    if options.store_larger < 0 or options.store_larger % scale:
        raise UsageError(
            f"--store-larger {options.store_larger}: use a multiple of the scale {scale}, or 0"
        )
    if options.max_blockiness and options.max_blockiness < 1:
        raise UsageError(f"--max-blockiness {options.max_blockiness:g}: use a ratio above 1")
    _check_lr_options(options)
    if options.max_megapixels <= 0:
        raise UsageError(f"--max-megapixels {options.max_megapixels:g}: use a number above 0")


def _check_lr_options(options: Options) -> None:
    """Refuse options that contradict published LR images, or degraded ones."""
    if options.degrade != "bicubic" and options.kernel != "pillow":
        raise UsageError(
            "--degrade realesrgan: resizes in its own ways, so leave out --kernel matlab"
        )
    if options.degrade != "bicubic" and options.lr_from == "patch":
        raise UsageError(
            "--degrade realesrgan: cuts LR patches out of larger ones; leave out --lr-from"
        )
    clashes = {
        "--degrade realesrgan": options.degrade != "bicubic",
        "--kernel matlab": options.kernel != "pillow",
        "--lr-from patch": options.lr_from == "patch",
        "--pre-scale": options.pre_scale < 1,
    }
    for name, clash in clashes.items():
        if options.lr_dir and clash:
            raise UsageError(f"--lr-dir: brings the LR images, so leave out {name}")


def describe_options(options: Options) -> dict[str, Option]:
    """The options as `manifest.json` lists them."""
    fields = msgspec.to_builtins(options)
    return dict(sorted((fields | {"val_list": sorted(options.val_list)}).items()))


def library_versions() -> dict[str, str]:
    """The versions that the written bytes depend on."""
    flavour, version = resize.describe_implementation()
    found = {
        "isal": isal.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        flavour: version,
    }
    return dict(sorted(found.items()))


def differences(before: dict[str, Option], now: dict[str, Option]) -> str:
    """Which settings differ, for a person: `--seed 0 then, 1 now`."""
    changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    return "; ".join(
        f"{name.replace('_', '-')} {_shorten(before.get(name))} then, {_shorten(now.get(name))} now"
        for name in changed
    )


def _shorten(value: Option) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"{len(value)} names"
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"
