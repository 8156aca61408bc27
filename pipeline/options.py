"""Everything that decides the bytes of a data set: options of `prep-shards` and library versions."""

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
"""Blockiness (`accept.measure_blockiness`) above which a photo is downscaled by `pre_scale`."""
FLAT_DETAIL = 4.0
"""Standard deviation of luma below which a patch is flat, grey levels."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All settings that decide the written bytes."""

    hr_size: int = 128
    """Side of an HR patch, pixels; a multiple of the scale."""
    scale: int = 4
    patches_per_image: int = 200
    """Random patches per photo (fewer for small photos: `extract.choose_positions`); 0 with a grid."""
    store_larger: int = 0
    """Extra size of stored HR patches, pixels; training takes random crops of `hr_size`."""
    grid: int = 0
    """Stride of a regular grid of patches, pixels; 0 for random positions."""
    kernel: Kernel = "pillow"
    """Implementation of the antialiased bicubic that makes LR."""
    degrade: Literal["bicubic", "realesrgan"] = "bicubic"
    """Degradation of LR: plain bicubic, or blur, noise and JPEG (`degrade`)."""
    lr_from: Literal["image", "patch"] = "image"
    """Downscale the whole photo and crop (as in the paper), or each patch separately."""
    codec: Codec = "png"
    """Encoding of stored patches."""
    keep_flat: float = 0.05
    """Fraction of the flat patches (luma deviation below FLAT_DETAIL) that is used, such as skies and walls."""
    min_detail: float = 0.0
    """Smallest luma deviation of a used patch, grey levels."""
    alpha: Literal["refuse", "drop"] = "refuse"
    """Treatment of photos with transparent pixels."""
    icc: Literal["convert", "ignore"] = "convert"
    """Whether photos with a colour profile are converted to sRGB."""
    max_blockiness: float = 0.0
    """Largest blockiness of an accepted photo; 0 accepts all."""
    pre_scale: float = 1.0
    """Downscaling of blocky photos before extraction: 1, 1/2 or 1/4."""
    lr_dir: str = ""
    """Digest of the list of official LR images; empty without them."""
    max_megapixels: float = 200.0
    seed: int = 0
    samples_per_shard: int = 4096
    val_fraction: float = 0.05
    """Fraction of the photos for validation, if neither folders nor a list decide."""
    val_list: tuple[str, ...] = ()
    """Names of the validation photos."""
    similar: Literal["drop", "keep"] = "drop"
    """Treatment of near-duplicates: use one, or keep all in one split."""
    exclude_like: str = ""
    """Digest of the test images that no photo may resemble."""

    @property
    def stored_size(self) -> int:
        """Side of a stored HR patch, pixels."""
        return self.hr_size + self.store_larger

    @property
    def flags_blocks(self) -> bool:
        """Whether blockiness is measured and stored in the JSON of each sample."""
        return self.max_blockiness > 0 or self.pre_scale < 1


def check_options(options: Options) -> None:
    """Check the options.

    Raises:
        UsageError: an option is invalid; names it.
    """
    for name, value in msgspec.to_builtins(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: is not a finite number; use a number"
            )
    scale = options.scale
    if scale not in SCALES:
        raise UsageError(
            f"--scale {scale}: is not supported; use one of {', '.join(map(str, SCALES))}"
        )
    if options.hr_size < 8 * scale or options.hr_size % scale:
        raise UsageError(
            f"--hr-size {options.hr_size}: does not fit the scale; use a multiple of {scale}, at least {8 * scale}"
        )
    if options.grid % scale:
        nearest = max(scale, round(options.grid / scale) * scale)
        raise UsageError(
            f"--grid {options.grid}: LR patches need whole pixels; use a multiple of the scale, such as {nearest}"
        )
    if not 0 <= options.val_fraction < 1:
        raise UsageError(
            f"--val-fraction {options.val_fraction}: is out of range; use a fraction from 0 to below 1"
        )
    if options.min_detail < 0:
        raise UsageError(
            f"--min-detail {options.min_detail:g}: is negative; use 0 or more grey levels"
        )
    if options.store_larger < 0 or options.store_larger % scale:
        raise UsageError(
            f"--store-larger {options.store_larger}: does not fit the scale; use a multiple of {scale}, or 0"
        )
    if options.max_blockiness and options.max_blockiness < 1:
        raise UsageError(
            f"--max-blockiness {options.max_blockiness:g}: is below 1; use a ratio above 1, or 0"
        )
    _check_lr_options(options)
    if options.max_megapixels <= 0:
        raise UsageError(
            f"--max-megapixels {options.max_megapixels:g}: is not positive; use a number above 0"
        )


def _check_lr_options(options: Options) -> None:
    """Refuse options that contradict official or degraded LR images."""
    if options.degrade != "bicubic" and options.kernel != "pillow":
        raise UsageError(
            "--degrade realesrgan: has its own resize methods; leave out --kernel matlab"
        )
    if options.degrade != "bicubic" and options.lr_from == "patch":
        raise UsageError(
            "--degrade realesrgan: crops LR patches from larger ones; leave out --lr-from"
        )
    clashes = {
        "--degrade realesrgan": options.degrade != "bicubic",
        "--kernel matlab": options.kernel != "pillow",
        "--lr-from patch": options.lr_from == "patch",
        "--pre-scale": options.pre_scale < 1,
    }
    for name, clash in clashes.items():
        if options.lr_dir and clash:
            raise UsageError(f"--lr-dir: provides the LR images; leave out {name}")


def describe_options(options: Options) -> dict[str, Option]:
    """Return the options as `manifest.json` stores them."""
    fields = msgspec.to_builtins(options)
    return dict(sorted((fields | {"val_list": sorted(options.val_list)}).items()))


def library_versions() -> dict[str, str]:
    """Return the versions of all libraries that influence the written bytes."""
    flavour, version = resize.describe_implementation()
    versions = {
        "isal": isal.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        flavour: version,
    }
    return dict(sorted(versions.items()))


def describe_differences(before: dict[str, Option], now: dict[str, Option]) -> str:
    """Return which settings differ, for the user: `seed 0 then, 1 now`."""
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
