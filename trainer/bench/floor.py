"""The least that making a data set can cost: each photo decoded once and resized once, each patch
encoded once. No checks, no order, no files. CPU seconds of one process on stdout; a third argument
says how many processes do all of it side by side, which share nothing but the machine.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from shards.format import index, png
from shards.format.manifest import Manifest
from shards.format.png import RGB8
from shards.images import resize
from shards.images.headers import read_header
from shards.images.photos import apply_orientation
from shards.read.dataset import open_dataset


class Patches(NamedTuple):
    """Where a photo was cut."""

    photo: Path
    name: str
    """Its path below the folder of photos, as a file name."""
    corners: list[tuple[int, int]]
    """Left and top edges of the HR patches, pixels."""


def cut_of(photos: Path, shards: Path) -> tuple[Manifest, list[Patches]]:
    """The patches of a data set, photo by photo, from its indices."""
    manifest = open_dataset(shards).manifest
    corners: dict[str, list[tuple[int, int]]] = {}
    for split in manifest.splits.values():
        for shard in split.shards:
            table = index.load_npz(index.npz_path(shards, shard.name))
            names = table.src[table.src_id].tolist()
            for name, x, y in zip(names, table.x.tolist(), table.y.tolist(), strict=True):
                corners.setdefault(name, []).append((x, y))
    return manifest, [
        Patches(photos / name, name.replace("/", "_"), found)
        for name, found in sorted(corners.items())
    ]


def crops(image: RGB8, corners: list[tuple[int, int]], size: int) -> Iterator[RGB8]:
    """The patches [size size 3] of an image."""
    for x, y in corners:
        yield image[y : y + size, x : x + size]


def spend(photos: Path, shards: Path) -> float:
    """CPU seconds of the bare work."""
    manifest, found = cut_of(photos, shards)
    cv2.setNumThreads(1)
    scale, size = manifest.scale, manifest.hr_size
    start = time.process_time()
    for each in found:
        hr = resize.crop_to_multiple(_decode(each.photo.read_bytes()), scale=scale)
        lr = resize.downscale(hr, scale=scale)
        small = [(x // scale, y // scale) for x, y in each.corners]
        for patch in crops(hr, each.corners, size):
            png.encode_rgb(patch)
        for patch in crops(lr, small, size // scale):
            png.encode_rgb(patch)
    return time.process_time() - start


def _decode(content: bytes) -> RGB8:
    header = read_header(content)  # which way is up, or the patches would lie elsewhere
    if header.kind == "JPEG":
        return apply_orientation(simplejpeg.decode_jpeg(content, "RGB"), header)
    if header.plain:
        plain = png.decode_plain(content, height=header.height, width=header.width)
        if plain is not None:
            return apply_orientation(plain, header)
    bgr = cv2.imdecode(
        np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    assert bgr is not None
    return apply_orientation(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), header)


if __name__ == "__main__":
    work = Path(sys.argv[1]), Path(sys.argv[2])
    beside = [
        multiprocessing.get_context("spawn").Process(target=spend, args=work)
        for _ in range(int(sys.argv[3]) - 1)
    ]
    for process in beside:
        process.start()
    print(spend(*work))  # noqa: T201  read by `bench-sr`
    for process in beside:
        process.join()
