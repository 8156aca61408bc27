"""Degradation of LR as in Real-ESRGAN: second-order, computed offline.

Wang et al. 2021, *Real-ESRGAN* (arXiv:2107.10833, sections 3.2 to 3.4; the numbers are those of its
x4plus training): blur, resize, noise and JPEG twice over, the last JPEG before or after a sinc filter
that causes ringing. The key decides all random draws, so a patch is always degraded in the same way.

Pixels are computed in float64: processors then differ by less than any 8-bit rounding shows.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from shards.format.png import RGB8

Image = npt.NDArray[np.float64]  # [h w 3] in [0, 1]
Kernel = npt.NDArray[np.float64]
MARGIN = 16
"""LR pixels around a patch that are degraded with it and cropped; blurs and JPEG blocks cross its edge."""
_SHAPES = ("gaussian", "generalized", "plateau")
_SHAPE_ODDS = {"gaussian": (0.45, 0.25), "generalized": (0.12, 0.03), "plateau": (0.12, 0.03)}
"""Probabilities of an isotropic and of an anisotropic kernel, per shape."""
_RESIZES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class Blur(NamedTuple):
    """A low-pass kernel; `sigma` is two widths in pixels, or the cut-off of a sinc filter in radians."""

    shape: str
    size: int
    sigma: tuple[float, ...]
    angle: float = 0.0
    power: float = 1.0


class Noise(NamedTuple):
    """Gaussian noise of `strength` grey levels, or Poisson noise times `strength`; `grey`: equal in all channels."""

    kind: Literal["gaussian", "poisson"]
    strength: float
    grey: bool


class Order(NamedTuple):
    """One of the two degradation orders."""

    blur: Blur | None
    resize: float
    """Factor relative to the previous size; in the second order relative to the LR size."""
    mode: str
    noise: Noise
    jpeg: int


class Recipe(NamedTuple):
    """All random draws for a patch except the noise."""

    first: Order
    second: Order
    sinc: Blur | None
    """Final filter that causes ringing; None: none."""
    jpeg_last: bool
    """Whether the second JPEG follows resize and sinc filter, instead of preceding them."""
    last_mode: str


class _ParameterRanges(NamedTuple):
    blur: float
    """Probability of a blur."""
    sigma: tuple[float, float]
    resize_odds: tuple[float, float, float]
    """Probabilities of enlarging, shrinking and keeping the size."""
    resize: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]


_FIRST_ORDER = _ParameterRanges(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
_SECOND_ORDER = _ParameterRanges(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
_JPEG_QUALITY = (30, 95)


def degrade(region: RGB8, *, scale: int, key: str) -> RGB8:
    """Return the degraded LR [h/scale w/scale 3] of a region [h w 3] with sides in multiples of the scale."""
    height, width = region.shape[0] // scale, region.shape[1] // scale
    recipe, stream = _draw_recipe(key), np.random.Generator(_random_stream(f"noise {key}"))
    image = region.astype(np.float64) / 255
    image = _apply_order(image, recipe.first, region.shape[0], region.shape[1], stream)
    image = _compress_jpeg(image, recipe.first.jpeg)
    image = _apply_order(image, recipe.second, height, width, stream)
    if not recipe.jpeg_last:
        image = _compress_jpeg(image, recipe.second.jpeg)
    image = _resize_image(image, height, width, recipe.last_mode)
    if recipe.sinc:
        image = _apply_filter(image, recipe.sinc)
    if recipe.jpeg_last:
        image = _compress_jpeg(image, recipe.second.jpeg)
    return _to_uint8(image)


def describe_recipe(key: str) -> str:
    """Return the degradation of a patch in words and numbers, for the JSON of its sample."""
    recipe = _draw_recipe(key)
    first = [*_describe_order(recipe.first), f"jpeg {recipe.first.jpeg}"]
    second, last = _describe_order(recipe.second), [f"jpeg {recipe.second.jpeg}"]
    sinc = [_describe_blur(recipe.sinc)] if recipe.sinc else []
    end = [f"to LR {recipe.last_mode}", *sinc]
    second += [*end, *last] if recipe.jpeg_last else [*last, *end]
    return ", ".join(first) + "; " + ", ".join(second)


def _describe_order(order: Order) -> list[str]:
    noise = order.noise
    grey = " grey" if noise.grey else ""
    return [
        _describe_blur(order.blur) if order.blur else "no blur",
        f"resize {order.resize:.3f} {order.mode}",
        f"{noise.kind} {noise.strength:.3f}{grey}",
    ]


def _describe_blur(blur: Blur) -> str:
    sigma = "x".join(f"{value:.3f}" for value in blur.sigma)
    angle = f" at {blur.angle:.3f}" if len(set(blur.sigma)) > 1 else ""
    power = f" power {blur.power:.3f}" if blur.shape in ("generalized", "plateau") else ""
    return f"{blur.shape} {blur.size} {sigma}{angle}{power}"


def _random_stream(name: str) -> np.random.Philox:
    digest = hashlib.blake2b(f"usrgan degrade {name}".encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, np.uint64))


# random draws


@lru_cache(maxsize=16)
def _draw_recipe(key: str) -> Recipe:
    stream = np.random.Generator(_random_stream(f"recipe {key}"))
    first, second = _draw_order(stream, _FIRST_ORDER), _draw_order(stream, _SECOND_ORDER)
    sinc = _draw_sinc(stream, _draw_kernel_size(stream)) if stream.random() < 0.8 else None
    return Recipe(first, second, sinc, stream.random() < 0.5, _draw_resize(stream))


def _draw_order(stream: np.random.Generator, ranges: _ParameterRanges) -> Order:
    blur = _draw_blur(stream, ranges.sigma) if stream.random() < ranges.blur else None
    low, high = ranges.resize
    direction = stream.choice(3, p=ranges.resize_odds)
    resize = (stream.uniform(1, high), stream.uniform(low, 1), 1.0)[direction]
    mode = _draw_resize(stream)
    if stream.random() < 0.5:
        noise = Noise("gaussian", stream.uniform(*ranges.gaussian), stream.random() < 0.4)
    else:
        noise = Noise("poisson", stream.uniform(*ranges.poisson), stream.random() < 0.4)
    return Order(
        blur, float(resize), mode, noise, int(stream.integers(*_JPEG_QUALITY, endpoint=True))
    )


def _draw_blur(stream: np.random.Generator, sigma: tuple[float, float]) -> Blur:
    size = _draw_kernel_size(stream)
    if stream.random() < 0.1:
        return _draw_sinc(stream, size)
    odds = [odd for shape in _SHAPES for odd in _SHAPE_ODDS[shape]]
    index = int(stream.choice(len(odds), p=odds))
    shape, anisotropic = _SHAPES[index // 2], index % 2 == 1
    width = stream.uniform(*sigma)
    widths = (width, stream.uniform(*sigma) if anisotropic else width)
    angle = stream.uniform(-np.pi, np.pi) if anisotropic else 0.0
    flatter = stream.random() < 0.5
    power = 1.0
    if shape == "generalized":
        power = stream.uniform(0.5, 1) if flatter else stream.uniform(1, 4)
    elif shape == "plateau":
        power = 1.0 if flatter else stream.uniform(1, 2)
    return Blur(shape, size, widths, angle, power)


def _draw_sinc(stream: np.random.Generator, size: int) -> Blur:
    return Blur("sinc", size, (stream.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi),))


def _draw_kernel_size(stream: np.random.Generator) -> int:
    return 2 * int(stream.integers(3, 11)) + 1


def _draw_resize(stream: np.random.Generator) -> str:
    return list(_RESIZES)[stream.integers(3)]


# image operations


def _apply_order(
    image: Image, order: Order, height: int, width: int, stream: np.random.Generator
) -> Image:
    if order.blur:
        image = _apply_filter(image, order.blur)
    rows, columns = max(1, int(height * order.resize)), max(1, int(width * order.resize))
    image = _resize_image(image, rows, columns, order.mode)
    return np.asarray(np.clip(image + _add_noise(image, order.noise, stream), 0, 1))


def _apply_filter(image: Image, blur: Blur) -> Image:
    filtered = cv2.filter2D(image, -1, blur_kernel(blur), borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(filtered, np.float64)


def blur_kernel(blur: Blur) -> Kernel:
    """Return the filter [size size] of a blur; it sums to 1."""
    reach = np.arange(blur.size) - blur.size // 2
    x, y = np.meshgrid(reach.astype(np.float64), reach.astype(np.float64))
    if blur.shape == "sinc":
        kernel = _sinc_kernel(np.hypot(x, y), blur.sigma[0])
    else:
        cosine, sine = np.cos(blur.angle), np.sin(blur.angle)
        along, across = (
            (cosine * x + sine * y) / blur.sigma[0],
            (cosine * y - sine * x) / blur.sigma[1],
        )
        distance = (along**2 + across**2) ** blur.power
        kernel = 1 / (1 + distance) if blur.shape == "plateau" else np.exp(-distance / 2)
    return np.asarray(kernel / kernel.sum())


def _sinc_kernel(radius: npt.NDArray[np.float64], cutoff: float) -> npt.NDArray[np.float64]:
    """Return the ideal circular low-pass, cutoff J1(cutoff r) / (2 pi r), with J1 by Bessel's integral."""
    far = np.maximum(radius, 1e-12)
    turn = (np.arange(128) + 0.5) * np.pi / 128
    bessel = np.cos(turn - (cutoff * far)[..., None] * np.sin(turn)).mean(axis=-1)
    return np.where(radius > 0, cutoff * bessel / (2 * np.pi * far), cutoff**2 / (4 * np.pi))


def _resize_image(image: Image, height: int, width: int, mode: str) -> Image:
    if image.shape[:2] == (height, width):
        return image
    resized: Any = cv2.resize(image, (width, height), interpolation=_RESIZES[mode])
    return np.asarray(resized, np.float64)


def _add_noise(image: Image, noise: Noise, stream: np.random.Generator) -> Image:
    if noise.kind == "gaussian":
        shape = (*image.shape[:2], 1 if noise.grey else 3)
        return np.asarray(stream.standard_normal(shape) * (noise.strength / 255))
    clean = np.clip(image, 0, 1)
    if noise.grey:
        clean = (clean @ np.array([0.299, 0.587, 0.114]))[..., None]
    # photons per unit of light: the number of grey levels of the image, rounded up to a power of two
    levels = len(np.unique(_to_uint8(clean)))
    photons = 2.0 ** int(np.ceil(np.log2(max(levels, 2))))
    return np.asarray((stream.poisson(clean * photons) / photons - clean) * noise.strength)


def _compress_jpeg(image: Image, quality: int) -> Image:
    bgr = np.ascontiguousarray(_to_uint8(image)[..., ::-1])
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded[..., ::-1], np.float64) / 255


def _to_uint8(image: Image) -> RGB8:
    return np.asarray(np.clip(np.rint(image * 255), 0, 255), np.uint8)
