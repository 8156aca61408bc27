"""Conversion of RGB and grey images with an ICC profile to sRGB.

Only matrix profiles (three primaries and three curves; one curve for grey) are supported; cameras, phones
and displays write these. Sources: ICC.1:2022 §8.3.3 (matrix model), §10.6 (`curv`), §10.18 (`para`), §F.3;
IEC 61966-2-1 for sRGB. All sums are integer, so every processor computes the same pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shards.format.png import RGB8

Curve = npt.NDArray[np.float64]

XYZ_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
"""D50 XYZ to linear sRGB: inverse of the sRGB primaries, adapted to D50 by the Bradford transform."""
SAME_LEVELS = 2
"""A profile that changes no colour by more than this many grey levels counts as sRGB."""
_FIXED_ONE = 2**15 - 1
"""Fixed-point value of linear light 1.0."""
_MAX_LIGHT = 2**17
"""Largest fixed-point light that one channel may add or subtract: four times white."""
_FIELD_BITS = 20
"""Bits per output channel in a packed sum, each offset by _MAX_LIGHT; three fields fit into 63 bits."""
_STRIP_PIXELS = 2**14
"""Pixels converted at a time; the intermediate arrays fit into the cache."""


class UnknownProfile(Exception):
    """The profile is damaged or unsupported; the message continues `has a …`."""


def to_srgb(pixels: RGB8, profile: bytes) -> RGB8:
    """Convert pixels [h w 3] with a colour profile to sRGB; return the same array if the profile is sRGB.

    Raises:
        UnknownProfile: the profile is damaged or unsupported.
    """
    tables = _build_tables(profile)
    if tables is None:
        return pixels
    flat = pixels.reshape(-1, 3)
    result = np.empty_like(flat)
    for at in range(0, len(flat), _STRIP_PIXELS):
        result[at : at + _STRIP_PIXELS] = _convert(flat[at : at + _STRIP_PIXELS], tables)
    return result.reshape(pixels.shape)


def _convert(colors: npt.NDArray[np.uint8], light: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Convert colours [n 3] to sRGB [n 3] with the tables of `_build_tables`."""
    out = np.empty_like(colors)
    red, green, blue = (colors[:, part].astype(np.intp) for part in range(3))
    total = light[0].take(red)
    total += light[1].take(green)
    total += light[2].take(blue)
    for channel in range(3):
        out[:, channel] = _srgb_table().take(total & (1 << _FIELD_BITS) - 1)
        total >>= _FIELD_BITS
    return out


@lru_cache(maxsize=1)
def _srgb_table() -> npt.NDArray[np.uint8]:
    """Return the sRGB value of each packed linear light [2**_FIELD_BITS], clipped to 0..1."""
    linear = np.clip((np.arange(1 << _FIELD_BITS) - 3 * _MAX_LIGHT) / _FIXED_ONE, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * curved), np.uint8)


@lru_cache(maxsize=64)
def _build_tables(profile: bytes) -> npt.NDArray[np.int64] | None:
    """Return the light [3 256] that each value of each channel adds, its R, G and B packed in one integer.

    Returns None for a profile that equals sRGB.
    """
    curves, primaries = _parse_profile(profile)
    matrix = XYZ_TO_SRGB @ primaries
    light = np.rint(matrix[:, :, None] * curves[None] * _FIXED_ONE).astype(np.int64)
    if np.abs(light).max() > _MAX_LIGHT:
        raise UnknownProfile("colour profile with impossible primaries")
    packed = np.asarray(
        sum((part + _MAX_LIGHT) << (_FIELD_BITS * n) for n, part in enumerate(light)),
        np.int64,
    )
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    if primaries.shape[1] == 3 and np.array_equal(curves[0], curves[1]) and _is_grey(profile):
        grid = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    change = np.abs(_convert(grid, packed).astype(int) - grid)
    return None if int(change.max()) <= SAME_LEVELS else packed


def _parse_profile(profile: bytes) -> tuple[Curve, npt.NDArray[np.float64]]:
    """Return curves [3 256] to linear light 0..1, and primaries [3 3] as columns of D50 XYZ."""
    try:
        tags = _read_tags(profile)
        if _is_grey(profile):
            grey = _read_curve(tags[b"kTRC"])
            return np.stack([grey] * 3), np.linalg.inv(XYZ_TO_SRGB)
        if profile[16:20] != b"RGB " or profile[20:24] != b"XYZ ":
            space = profile[16:20].decode("ascii", "replace").strip("\0 ")
            name = space if space.isalnum() else "unknown"
            raise UnknownProfile(f"colour profile of {name} values, not RGB or grey")
        curves = np.stack([_read_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
        columns = [_read_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        return curves, np.array(columns).T
    except KeyError as missing:
        raise UnknownProfile(
            f"colour profile without {missing.args[0].decode()}, so it uses look-up tables"
        ) from None
    except (struct.error, IndexError, ValueError, ArithmeticError):
        raise UnknownProfile("damaged colour profile") from None


def _is_grey(profile: bytes) -> bool:
    return profile[16:20] == b"GRAY"


def _read_tags(profile: bytes) -> Mapping[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for number in range(min(count, 100)):
        name, at, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        tags[name] = profile[at : at + size]
    return tags


def _read_xyz(tag: bytes) -> npt.NDArray[np.float64]:
    if tag[:4] != b"XYZ ":
        raise ValueError(tag[:4])
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _read_curve(tag: bytes) -> Curve:
    """Return the linear light of each value [256]."""
    values = np.arange(256) / 255
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return values
        points = np.array(struct.unpack_from(f">{count}H", tag, 12))
        if count == 1:
            return np.asarray(values ** (points[0] / 256))
        return np.interp(values, np.linspace(0, 1, count), points / 65535)
    if tag[:4] != b"para":
        raise ValueError(tag[:4])
    (kind,) = struct.unpack_from(">H", tag, 8)
    lengths = (1, 3, 4, 5, 7)
    parameters = [n / 65536 for n in struct.unpack_from(f">{lengths[kind]}i", tag, 12)]
    with np.errstate(divide="raise", over="raise"):
        return np.clip(_apply_parametric(values, kind, parameters), 0, 1)


def _apply_parametric(x: Curve, kind: int, p: list[float]) -> Curve:
    """Apply the curve of ICC.1:2022 table 68: Y = (aX + b)^g + e where X >= d, else cX + f."""
    g, a, b, c, d, e, f = (*p, *([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0][len(p) - 1 :]))[:7]
    if kind == 0:
        return np.asarray(x**g)
    if kind in (1, 2):
        d, e, f = -b / a, c if kind == 2 else 0.0, c if kind == 2 else 0.0
        c = 0.0
    power = np.clip(a * x + b, 0, None) ** g + e
    return np.where(x >= d, power, c * x + f)
