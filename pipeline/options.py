"""What decides the bytes of a data set: the options of `prep-shards` and the libraries' versions."""

from __future__ import annotations

import importlib.metadata
from typing import Literal

import cv2
import msgspec

from shards import resize
from shards.codec import Codec
from shards.errors import UsageError
from shards.manifest import Option
from shards.resize import Kernel

SCALES = (2, 3, 4, 8)
FLAT = 4.0
"""A patch is flat when the standard deviation of its luma is below this, grey levels."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting that the written bytes depend on."""

    hr_size: int = 128
    """Side of an HR patch, pixels; a multiple of the scale."""
    scale: int = 4
    patches_per_image: int = 200
    """Random patches of a photo (fewer of a small one: `patches.positions`); 0 with a grid."""
    grid: int = 0
    """Distance of the patches of a regular grid, pixels; 0 for random positions."""
    kernel: Kernel = "pillow"
    """Whose antialiased bicubic makes LR."""
    lr_from: Literal["image", "patch"] = "image"
    """Downscale the whole photo and cut (the paper's decoupled way), or each patch by itself."""
    codec: Codec = "png"
    """How patches are stored."""
    keep_flat: float = 0.05
    """Share of the patches with a luma deviation below FLAT that is kept: skies and walls in moderation."""
    min_detail: float = 0.0
    """Luma deviation, grey levels, below which no patch is kept."""
    alpha: Literal["refuse", "drop"] = "refuse"
    """What happens to photos with transparent pixels."""
    max_megapixels: float = 200.0
    seed: int = 0
    samples_per_shard: int = 4096
    val_fraction: float = 0.05
    """Share of the photos that validate, where neither the folders nor a list say which."""
    val_list: tuple[str, ...] = ()
    """Names of the photos that validate."""
    similar: Literal["drop", "keep"] = "drop"
    """Of photos that look alike, take one, or all of them in one split."""
    exclude_like: str = ""
    """Digest of the test pictures that no photo may resemble."""


def check_options(options: Options) -> None:
    """Refuse what cannot be.

    Raises:
        UsageError: naming the option.
    """
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
    if options.max_megapixels <= 0:
        raise UsageError(f"--max-megapixels {options.max_megapixels:g}: use a number above 0")


def described(options: Options) -> dict[str, Option]:
    """The options as `manifest.json` lists them."""
    fields = msgspec.to_builtins(options)
    return dict(sorted((fields | {"val_list": sorted(options.val_list)}).items()))


def libraries() -> dict[str, str]:
    """The versions that the written bytes depend on."""
    flavour, version = resize.implementation()
    names = ("isal", "numpy", "simplejpeg", "webdataset")
    found = {name: importlib.metadata.version(name) for name in names}
    return dict(sorted((found | {"opencv": cv2.__version__, flavour: version}).items()))


def differences(before: dict[str, Option], now: dict[str, Option]) -> str:
    """Which settings differ, for a person: `--seed 0 then, 1 now`."""
    changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    return "; ".join(
        f"{name.replace('_', '-')} {_short(before.get(name))} then, {_short(now.get(name))} now"
        for name in changed
    )


def _short(value: Option) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"{len(value)} names"
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"
