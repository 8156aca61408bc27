"""How much detail a picture has beside the truth: power of luma, over all and by frequency, in dB.

PSNR is highest for the mean of all that could have been there, which is smooth; a generator that draws detail
has more power at high frequencies, and one that draws a pattern of its own more than the truth has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shards.format.png import RGB8
from trainer.evaluation.metrics import Plane, luma

BANDS = 4
NAMES = ("gradient", *(f"band_{number}" for number in range(1, BANDS + 1)))
PROTOCOL = (
    "gradient and bands: 10 log10 of the power of Y over that of HR; of differences of neighbours, and in quarters"
    " of the frequencies up to Nyquist's, of the largest square in the middle under a Hann window"
)
_NOTHING = 1e-9
"""Added to every power, squared grey levels: a flat picture has none."""


def detail_against(hr: RGB8, *, crop: int) -> Callable[[RGB8], dict[str, float]]:
    """Levels in dB of any picture [h w 3] beside the truth [h w 3], which is looked at once; 0 is as much.

    Args:
        hr: the truth.
        crop: pixels cut off at each side.
    """
    wanted = _powers(hr, crop)

    def levels(sr: RGB8) -> dict[str, float]:
        found = 10 * np.log10(_powers(sr, crop) / wanted)
        return dict(zip(NAMES, found.tolist(), strict=True))

    return levels


def _powers(image: RGB8, crop: int) -> npt.NDArray[np.float64]:
    inside = slice(crop, -crop or None)
    plane = luma(image[inside, inside])
    return np.array([_gradient(plane), *_bands(plane)]) + _NOTHING


def _gradient(plane: Plane) -> float:
    return float(sum(np.mean(np.diff(plane, axis=axis) ** 2) for axis in range(2)))


def _bands(plane: Plane) -> list[float]:
    """Mean power in rings of spatial frequency; the corners beyond the last ring are left out."""
    height, width = plane.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = plane[top : top + side, left : left + side]
    window = np.hanning(side)
    power = np.abs(np.fft.rfft2((square - square.mean()) * window[:, None] * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * 2
    ring = np.floor(radius * BANDS).astype(int)
    return [float(power[ring == number].mean()) / side**2 for number in range(BANDS)]
