"""Batches out of shards, in an order that is a function of (data, seed, step) and nothing else.

Nothing has to be stored to go on at a step: the permutation of each pass over the data and the
turn of each patch come from counter-based random numbers (Philox) keyed by data set, seed and pass.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.errors import UsageError
from shards.png import RGB8
from shards.reader import SplitReader

BATCHES_AHEAD = 3


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How patches reach the step; neither setting changes which patches come."""

    workers: int = 2
    """Threads that read and decode beside the training step; 0 decodes in the step's own thread."""
    augment: bool = True
    """Flips and 90° turns, the same for LR and HR."""


class Request(NamedTuple):
    """One patch pair as a step wants it."""

    position: int
    turn: int
    left: int
    """Of the crop, LR pixels."""
    top: int


class Batch(NamedTuple):
    """uint8 RGB patches on the CPU: `lr` [B h w 3], `hr` [B sh sw 3], and their positions [B]."""

    lr: Tensor
    hr: Tensor
    positions: npt.NDArray[np.int64]


def steps_per_pass(samples: int, batch_size: int) -> int:
    """Whole batches in one pass over the data; the rest of a pass (other samples each time) is left."""
    if samples < batch_size:
        raise UsageError(
            f"batch_size: {batch_size} patches a step, but the shards hold only {samples};"
            " cut more with prep-shards --patches-per-image or lower batch_size"
        )
    return samples // batch_size


def pass_order(
    samples: int, *, dataset_sha256: str, seed: int, number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Order of the samples in one pass, and for each sample one of the eight turns of the square."""
    key = hashlib.blake2b(f"{dataset_sha256} {seed} {number}".encode(), digest_size=16).digest()
    draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(samples)
    order = np.argsort(draws, kind="stable").astype(np.int64)
    return order, (draws & np.uint64(7)).astype(np.uint8)


def crop_corners(
    samples: int, free: int, *, dataset_sha256: str, seed: int, number: int
) -> npt.NDArray[np.int64]:
    """Where each sample is cropped in one pass: left and top [samples 2] from 0 up to `free`, LR pixels."""
    name = f"crops {dataset_sha256} {seed} {number}".encode()
    key = hashlib.blake2b(name, digest_size=16).digest()
    draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(2 * samples)
    return (draws % np.uint64(free + 1)).astype(np.int64).reshape(samples, 2)


def batches(
    split: SplitReader,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Batch]:
    """Endless batches from `first_step` on: of each, this rank's equal share of the places.

    Raises:
        UsageError: the split holds less than one batch.
        DamagedData: a sample is not what its index promises (when its batch is due).
    """
    dataset_sha256 = split.manifest.dataset_sha256
    per_pass = steps_per_pass(len(split), batch_size)
    side = split.manifest.training_size // split.manifest.scale
    free = split.manifest.hr_size // split.manifest.scale - side

    def requests() -> Iterator[list[Request]]:
        number, step = divmod(first_step, per_pass)
        while True:
            order, turns = pass_order(
                len(split), dataset_sha256=dataset_sha256, seed=seed, number=number
            )
            corners = (
                crop_corners(
                    len(split), free, dataset_sha256=dataset_sha256, seed=seed, number=number
                ).tolist()
                if free
                else None
            )
            share = batch_size // world_size
            first = step * batch_size + rank * share
            for start in range(first, per_pass * batch_size, batch_size):
                chosen = order[start : start + share].tolist()
                yield [
                    Request(
                        i,
                        int(turns[i]) if config.augment else 0,
                        *(corners[i] if corners else (0, 0)),
                    )
                    for i in chosen
                ]
            number, step = number + 1, 0

    def load(request: Request) -> tuple[RGB8, RGB8]:
        pair = split[request.position]
        lr, hr = pair.lr, pair.hr
        if free:
            lr, hr = cropped(lr, hr, request.left, request.top, side)
        return turned(lr, request.turn), turned(hr, request.turn)

    if config.workers == 0:
        for request in requests():
            yield _collate(request, [load(each) for each in request])
        return
    with ThreadPoolExecutor(config.workers, thread_name_prefix="decode") as pool:
        ahead: deque[tuple[list[Request], list[Future[tuple[RGB8, RGB8]]]]] = deque()
        try:
            for request in requests():
                ahead.append((request, [pool.submit(load, each) for each in request]))
                if len(ahead) > BATCHES_AHEAD:
                    due, loading = ahead.popleft()
                    yield _collate(due, [future.result() for future in loading])
        finally:
            pool.shutdown(cancel_futures=True)


def cropped(lr: RGB8, hr: RGB8, left: int, top: int, side: int) -> tuple[RGB8, RGB8]:
    """Cut `side` LR pixels out of a pair at (left, top), and the same place out of HR."""
    scale = hr.shape[0] // lr.shape[0]
    x, y, size = scale * left, scale * top, scale * side
    return lr[top : top + side, left : left + side], hr[y : y + size, x : x + size]


def turned(image: RGB8, turn: int) -> RGB8:
    """One of the eight turns of a square image: bit 2 mirrors, bits 0 and 1 count 90° turns."""
    if turn & 4:
        image = image[:, ::-1]
    return np.rot90(image, turn & 3)


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B h w 3] on the CPU => float32 [B 3 h w] in [0, 1] on the device, channels last."""
    moved = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.channels_last) / 255


def _collate(request: list[Request], pairs: list[tuple[RGB8, RGB8]]) -> Batch:
    lr = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    hr = torch.from_numpy(np.stack([pair[1] for pair in pairs]))
    return Batch(lr, hr, np.array([each.position for each in request], np.int64))
