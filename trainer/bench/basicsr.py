"""The same patches made the way of BasicSR's scripts, in our own words: the peer of `bench-sr prep`.

What those do (BasicSR v1.4.2): LR of each whole photo by an `imresize` in Python that goes row by row
and channel by channel (`utils/matlab_functions.py`), saved as a picture; crops of HR and of LR pictures
as single PNG files of OpenCV's compression level 3 by a pool of processes
(`scripts/data_preparation/extract_subimages.py`); then one process reads every crop, encodes it again
at level 1 and puts it into one archive (`utils/lmdb_util.py`, whose `multiprocessing_read` is off).
All stages but the last get the same number of processes as prep-shards.
"""

from __future__ import annotations

import multiprocessing
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from shards.format.png import RGB8
from trainer.bench.floor import Patches, crops, cut_of

LEVEL = 3


def imresize(image: RGB8, scale: int) -> RGB8:
    """Antialiased bicubic x1/scale of an image [h w 3], a matrix product for each row and channel."""
    taken: npt.NDArray[np.float32] = image.astype(np.float32) / np.float32(255)
    for _ in range(2):
        taken = _shrink(taken, scale).transpose(1, 0, 2)
    return np.asarray(np.clip(np.rint(taken * 255), 0, 255), np.uint8)


def _shrink(image: npt.NDArray[np.float32], scale: int) -> npt.NDArray[np.float32]:
    rows, reach = image.shape[0] // scale, 4 * scale + 2
    centres = (np.arange(rows) + 0.5) * scale - 0.5
    first = np.floor(centres - reach / 2).astype(int) + 1
    distance = np.abs(first[:, None] + np.arange(reach) - centres[:, None]) / scale
    weights = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        np.where(distance < 2, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2, 0.0),
    )
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    pad = reach
    padded = np.pad(image, ((pad, pad), (0, 0), (0, 0)), mode="symmetric")
    made = np.empty((rows, *image.shape[1:]), np.float32)
    for row in range(rows):
        window = padded[first[row] + pad : first[row] + pad + reach]
        for channel in range(image.shape[2]):
            made[row, :, channel] = window[..., channel].T @ weights[row]
    return made


def save_lr(each: Patches, folder: Path, scale: int) -> None:
    """LR of one photo as a picture."""
    cv2.setNumThreads(1)
    hr = _read(each.photo)
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    _save(folder / f"{each.name}.png", imresize(hr, scale), LEVEL)


def extract(each: Patches, folder: Path, size: int) -> None:
    """The crops of one picture as files."""
    cv2.setNumThreads(1)
    for number, patch in enumerate(crops(_read(each.photo), each.corners, size)):
        _save(folder / f"{each.name}_s{number:03d}.png", patch, LEVEL)


def make(photos: Path, shards: Path, out: Path, *, workers: int) -> None:
    """LR pictures, crops and archive of all photos of a data set."""
    manifest, found = cut_of(photos, shards)
    scale, size = manifest.scale, manifest.hr_size
    for name in ("lr", "hr_sub", "lr_sub"):
        (out / name).mkdir(parents=True)
    lows = [
        Patches(
            out / f"lr/{each.name}.png",
            each.name,
            [(x // scale, y // scale) for x, y in each.corners],
        )
        for each in found
    ]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(save_lr, found, repeat(out / "lr"), repeat(scale)))
        list(pool.map(extract, found, repeat(out / "hr_sub"), repeat(size)))
        list(pool.map(extract, lows, repeat(out / "lr_sub"), repeat(size // scale)))
    with zipfile.ZipFile(out / "archive.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(out.glob("*_sub/*.png")):
            again = cv2.imencode(".png", _read(path), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            archive.writestr(f"{path.parent.name}/{path.name}", again.tobytes())


def _read(path: Path) -> RGB8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def _save(path: Path, image: RGB8, level: int) -> None:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, level])


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), workers=int(sys.argv[4]))
