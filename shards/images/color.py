"""Colour profiles: pixels of an RGB or grey ICC profile to sRGB.

Only matrix profiles (three primaries, three curves; one curve for grey) are computed: cameras, phones
and displays write those. Sources: ICC.1:2022 §8.3.3 (matrix model), §10.6 (`curv`), §10.18 (`para`),
§F.3; IEC 61966-2-1 for sRGB. All sums are of whole numbers, so every processor gets the same pixels.
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
"""D50 XYZ to linear sRGB: the inverse of sRGB's primaries adapted to D50 by Bradford's transform."""
SAME_LEVELS = 2
"""A profile that moves no colour by more than so many grey levels is sRGB by another name."""
_FIXED_ONE = 2**15 - 1
"""Linear light of 1.0 in the tables."""
_LARGEST_PROFILE = 2**17
"""Linear light that one channel may add or take away: four times white."""
_DECODE_BITS = 20
"""Bits that hold the light of three channels, each raised by _MOST; three such fields fit in 63 bits."""
_STRIP_PIXELS = 2**14  # pixels at a time: what is between lies in the processor's cache


class UnknownProfile(Exception):
    """The profile is broken or of a kind that is not computed; the message completes `has a …`."""


def to_srgb(pixels: RGB8, profile: bytes) -> RGB8:
    """Pixels [h w 3] of a colour profile as sRGB; the same array where the profile is sRGB.

    Raises:
        UnknownProfile: it cannot be applied.
    """
    tables = _build_tables(profile)
    if tables is None:
        return pixels
    flat = pixels.reshape(-1, 3)
    result = np.empty_like(flat)
    for at in range(0, len(flat), _STRIP_PIXELS):
        result[at : at + _STRIP_PIXELS] = _convert(flat[at : at + _STRIP_PIXELS], tables)
    return result.reshape(pixels.shape)


def _convert(colours: npt.NDArray[np.uint8], light: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """[n 3] of a profile to [n 3] of sRGB, by what `_tables` makes."""
    out = np.empty_like(colours)
    red, green, blue = (colours[:, part].astype(np.intp) for part in range(3))
    total = light[0].take(red)
    total += light[1].take(green)
    total += light[2].take(blue)
    for channel in range(3):
        out[:, channel] = _encode_srgb().take(total & (1 << _DECODE_BITS) - 1)
        total >>= _DECODE_BITS
    return out


@lru_cache(maxsize=1)
def _encode_srgb() -> npt.NDArray[np.uint8]:
    """Values of sRGB [2**_FIELD] of linear light, which may be below 0 and above 1."""
    linear = np.clip((np.arange(1 << _DECODE_BITS) - 3 * _LARGEST_PROFILE) / _FIXED_ONE, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * curved), np.uint8)


@lru_cache(maxsize=64)
def _build_tables(profile: bytes) -> npt.NDArray[np.int64] | None:
    """Light [3 256] that each value of each channel adds, to R, G and B in the fields of one number."""
    curves, primaries = _parse_profile(profile)
    matrix = XYZ_TO_SRGB @ primaries
    light = np.rint(matrix[:, :, None] * curves[None] * _FIXED_ONE).astype(np.int64)
    if np.abs(light).max() > _LARGEST_PROFILE:
        raise UnknownProfile("colour profile whose primaries are no colours")
    packed = np.asarray(
        sum((each + _LARGEST_PROFILE) << (_DECODE_BITS * n) for n, each in enumerate(light)),
        np.int64,
    )
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    if primaries.shape[1] == 3 and np.array_equal(curves[0], curves[1]) and _is_grey(profile):
        grid = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    moved = np.abs(_convert(grid, packed).astype(int) - grid)
    return None if int(moved.max()) <= SAME_LEVELS else packed


def _parse_profile(profile: bytes) -> tuple[Curve, npt.NDArray[np.float64]]:
    """Curves [3 256] to linear light 0..1 and primaries [3 3], D50 XYZ in columns."""
    try:
        tags = _read_tags(profile)
        if _is_grey(profile):
            grey = _read_curve(tags[b"kTRC"])
            return np.stack([grey] * 3), np.linalg.inv(XYZ_TO_SRGB)
        if profile[16:20] != b"RGB " or profile[20:24] != b"XYZ ":
            kind = profile[16:20].decode("ascii", "replace").strip("\0 ")
            known = kind if kind.isalnum() else "unknown"
            raise UnknownProfile(f"colour profile of {known} values, not RGB or grey")
        curves = np.stack([_read_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
        columns = [_read_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        return curves, np.array(columns).T
    except KeyError as missing:
        raise UnknownProfile(
            f"colour profile without {missing.args[0].decode()}: one of look-up tables"
        ) from None
    except (struct.error, IndexError, ValueError, ArithmeticError):
        raise UnknownProfile("broken colour profile") from None


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
    """[256] linear light of each value."""
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
    given = [number / 65536 for number in struct.unpack_from(f">{lengths[kind]}i", tag, 12)]
    with np.errstate(divide="raise", over="raise"):
        return np.clip(_read_parametric(values, kind, given), 0, 1)


def _read_parametric(x: Curve, kind: int, p: list[float]) -> Curve:
    """ICC.1:2022 table 68: Y = (aX + b)^g + e where X >= d, else cX + f."""
    g, a, b, c, d, e, f = (*p, *([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0][len(p) - 1 :]))[:7]
    if kind == 0:
        return np.asarray(x**g)
    if kind in (1, 2):
        d, e, f = -b / a, c if kind == 2 else 0.0, c if kind == 2 else 0.0
        c = 0.0
    power = np.clip(a * x + b, 0, None) ** g + e
    return np.where(x >= d, power, c * x + f)
