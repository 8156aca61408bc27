"""Floor and peer of `bench-sr prep`, on the patches of a finished data set; each runs as its own process.

    python -m trainer.bench.prep_baselines floor PHOTOS SHARDS PROCESSES
    python -m trainer.bench.prep_baselines basicsr PHOTOS SHARDS OUT WORKERS

Floor: decode and resize each photo once, encode each patch once. No checks, no order, no files. PROCESSES do the
same work side by side and share only the machine. Prints the CPU seconds of one process.

Peer: the scripts of BasicSR v1.4.2 in our own words. An `imresize` in Python, row by row and channel by channel,
writes an LR image of each photo (`utils/matlab_functions.py`). A pool of processes writes crops of HR and LR images
as PNG files of OpenCV's compression level 3 (`scripts/data_preparation/extract_subimages.py`). One process encodes
each crop again at level 1 into one archive (`utils/lmdb_util.py`, whose `multiprocessing_read` is off).
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from shards.format import index, png
from shards.format.manifest import Manifest
from shards.format.png import RGB8
from shards.images import resize
from shards.images.headers import read_header
from shards.images.photos import apply_orientation
from shards.read.dataset import open_dataset

LEVEL = 3
"""OpenCV's PNG compression level of BasicSR's files."""


class Cuts(NamedTuple):
    """Patch positions in one photo."""

    photo: Path
    name: str
    """Path below the folder of photos, as a file name."""
    corners: list[tuple[int, int]]
    """Left and top edges of the HR patches, pixels."""


def load_cuts(photos: Path, shards: Path) -> tuple[Manifest, list[Cuts]]:
    """Manifest of a data set, and the cuts of each photo from its indices."""
    manifest = open_dataset(shards).manifest
    corners: dict[str, list[tuple[int, int]]] = {}
    for split in manifest.splits.values():
        for shard in split.shards:
            table = index.load_npz(index.npz_path(shards, shard.name))
            names = table.src[table.src_id].tolist()
            for name, x, y in zip(names, table.x.tolist(), table.y.tolist(), strict=True):
                corners.setdefault(name, []).append((x, y))
    return manifest, [
        Cuts(photos / name, name.replace("/", "_"), corners[name]) for name in sorted(corners)
    ]


def crop_patches(image: RGB8, corners: list[tuple[int, int]], size: int) -> Iterator[RGB8]:
    """Patches [size size 3] of an image."""
    for x, y in corners:
        yield image[y : y + size, x : x + size]


def measure_floor(photos: Path, shards: Path) -> float:
    """CPU seconds of decoding, resizing and encoding once."""
    manifest, photo_cuts = load_cuts(photos, shards)
    cv2.setNumThreads(1)
    scale, size = manifest.scale, manifest.hr_size
    start = time.process_time()
    for cuts in photo_cuts:
        hr = resize.crop_to_multiple(_decode_photo(cuts.photo.read_bytes()), scale=scale)
        lr = resize.downscale(hr, scale=scale)
        for patch in crop_patches(hr, cuts.corners, size):
            png.encode_rgb(patch)
        for patch in crop_patches(lr, _divide(cuts.corners, scale), size // scale):
            png.encode_rgb(patch)
    return time.process_time() - start


def _decode_photo(content: bytes) -> RGB8:
    header = read_header(content)  # patch positions hold for the upright photo
    if header.kind == "JPEG":
        return apply_orientation(simplejpeg.decode_jpeg(content, "RGB"), header)
    if header.plain:
        plain = png.decode_plain(content, height=header.height, width=header.width)
        if plain is not None:
            return apply_orientation(plain, header)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert image is not None
    return apply_orientation(np.asarray(image, np.uint8), header)


def _divide(corners: list[tuple[int, int]], scale: int) -> list[tuple[int, int]]:
    return [(x // scale, y // scale) for x, y in corners]


def imresize(image: RGB8, scale: int) -> RGB8:
    """Antialiased bicubic ×1/scale of an image [h w 3], one matrix product per row and channel."""
    values: npt.NDArray[np.float32] = image.astype(np.float32) / np.float32(255)
    for _ in range(2):
        values = _shrink_rows(values, scale).transpose(1, 0, 2)
    return np.asarray(np.clip(np.rint(values * 255), 0, 255), np.uint8)


def _shrink_rows(image: npt.NDArray[np.float32], scale: int) -> npt.NDArray[np.float32]:
    rows, width = image.shape[0] // scale, 4 * scale + 2
    centres = (np.arange(rows) + 0.5) * scale - 0.5
    first = np.floor(centres - width / 2).astype(int) + 1
    distance = np.abs(first[:, None] + np.arange(width) - centres[:, None]) / scale
    weights = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        np.where(distance < 2, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2, 0.0),
    )
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    padded = np.pad(image, ((width, width), (0, 0), (0, 0)), mode="symmetric")
    shrunk = np.empty((rows, *image.shape[1:]), np.float32)
    for row in range(rows):
        window = padded[first[row] + width : first[row] + 2 * width]
        for channel in range(image.shape[2]):
            shrunk[row, :, channel] = window[..., channel].T @ weights[row]
    return shrunk


def save_lr(cuts: Cuts, folder: Path, scale: int) -> None:
    """Write the LR image of one photo."""
    cv2.setNumThreads(1)
    hr = _read_image(cuts.photo)
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    _write_image(folder / f"{cuts.name}.png", imresize(hr, scale))


def save_crops(cuts: Cuts, folder: Path, size: int) -> None:
    """Write the crops of one image as files."""
    cv2.setNumThreads(1)
    for number, patch in enumerate(crop_patches(_read_image(cuts.photo), cuts.corners, size)):
        _write_image(folder / f"{cuts.name}_s{number:03d}.png", patch)


def make_basicsr_dataset(photos: Path, shards: Path, out: Path, *, workers: int) -> None:
    """Write LR images, crops and archive of all photos of a data set."""
    manifest, hr_cuts = load_cuts(photos, shards)
    scale, size = manifest.scale, manifest.hr_size
    for name in ("lr", "hr_sub", "lr_sub"):
        (out / name).mkdir(parents=True)
    lr_cuts = [
        Cuts(out / f"lr/{cuts.name}.png", cuts.name, _divide(cuts.corners, scale))
        for cuts in hr_cuts
    ]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(save_lr, hr_cuts, repeat(out / "lr"), repeat(scale)))
        list(pool.map(save_crops, hr_cuts, repeat(out / "hr_sub"), repeat(size)))
        list(pool.map(save_crops, lr_cuts, repeat(out / "lr_sub"), repeat(size // scale)))
    with zipfile.ZipFile(out / "archive.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(out.glob("*_sub/*.png")):
            content = cv2.imencode(".png", _read_image(path), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            archive.writestr(f"{path.parent.name}/{path.name}", content.tobytes())


def _read_image(path: Path) -> RGB8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def _write_image(path: Path, image: RGB8) -> None:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, LEVEL])


if __name__ == "__main__":
    inputs = Path(sys.argv[2]), Path(sys.argv[3])
    if sys.argv[1] == "basicsr":
        make_basicsr_dataset(*inputs, Path(sys.argv[4]), workers=int(sys.argv[5]))
    else:
        context = multiprocessing.get_context("spawn")
        others = [
            context.Process(target=measure_floor, args=inputs) for _ in range(int(sys.argv[4]) - 1)
        ]
        for process in others:
            process.start()
        print(measure_floor(*inputs))  # noqa: T201  read by `bench-sr prep`
        for process in others:
            process.join()
