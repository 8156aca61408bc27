"""Detail of an image relative to HR: power of luma gradients and of frequency bands, in dB.

PSNR is highest for the mean of all plausible images, which is smooth. A generator that draws detail has more
power at high frequencies; one that draws an artificial pattern has more power than HR.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shards.format.png import RGB8
from trainer.evaluation.metrics import Plane, luma

BANDS = 4
DETAIL_NAMES = ("gradient", *(f"band_{number}" for number in range(1, BANDS + 1)))
PROTOCOL = (
    "gradient and bands: 10 log10 of the power of Y over that of HR; of differences of neighbours, and in quarters"
    " of the frequencies up to Nyquist's, of the largest square in the middle under a Hann window"
)
_POWER_FLOOR = 1e-9
"""Added to every power, in squared grey levels; a flat image has no power."""


def detail_metric_for(hr: RGB8, *, crop: int) -> Callable[[RGB8], dict[str, float]]:
    """Return a function from an SR image [h w 3] to its levels in dB relative to HR; 0 is equal power.

    The powers of HR are computed once.

    Args:
        hr: ground truth [h w 3].
        crop: border to leave out at each side, in pixels.
    """
    hr_powers = _measure_powers(hr, crop)

    def measure_detail(sr: RGB8) -> dict[str, float]:
        levels = 10 * np.log10(_measure_powers(sr, crop) / hr_powers)
        return dict(zip(DETAIL_NAMES, levels.tolist(), strict=True))

    return measure_detail


def _measure_powers(image: RGB8, crop: int) -> npt.NDArray[np.float64]:
    inside = slice(crop, -crop or None)
    plane = luma(image[inside, inside])
    return np.array([_measure_gradient(plane), *_measure_bands(plane)]) + _POWER_FLOOR


def _measure_gradient(plane: Plane) -> float:
    """Return the mean squared difference of neighbours, summed over both axes."""
    return float(sum(np.mean(np.diff(plane, axis=axis) ** 2) for axis in range(2)))


def _measure_bands(plane: Plane) -> list[float]:
    """Return the mean power in rings of spatial frequency; the corners beyond the last ring are left out."""
    height, width = plane.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = plane[top : top + side, left : left + side]
    window = np.hanning(side)
    power = np.abs(np.fft.rfft2((square - square.mean()) * window[:, None] * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * 2
    ring = np.floor(radius * BANDS).astype(int)
    return [float(power[ring == number].mean()) / side**2 for number in range(BANDS)]
