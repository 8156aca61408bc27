"""From sample requests to batches: bytes read ahead, decoded, cropped, cached, and moved to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.format.png import RGB8
from shards.read.blocks import Block
from shards.read.split import SplitReader
from trainer.data.patch_cache import PatchCache, stored_sides
from trainer.data.sampler import ChunkSlice

Pixel = TypeVar("Pixel", bound=np.generic)


class Batch(NamedTuple):
    """This rank's patches of one step, uint8 RGB, before augmentation: `to_float_images` applies it on the device."""

    lr: Tensor
    """[B h w 3]; for a GPU in pinned memory or, with data.cache=device, on the GPU."""
    hr: Tensor
    """[B sh sw 3], in the same place."""
    dihedrals: Tensor
    """[B], transform of each patch, 0 to 7."""
    positions: npt.NDArray[np.int64]
    """[B], positions in the split."""


class PendingChunk:
    """Bytes of a slot stream's samples of one chunk; the read may still be running."""

    __slots__ = ("_block", "_future")

    def __init__(self, future: Future[Block]) -> None:
        self._future = future
        self._block: Block | None = None

    @property
    def block(self) -> Block:
        """The bytes; waits for the read and raises its error."""
        if self._block is None:
            self._block = self._future.result()
        return self._block


class SampleRequest(NamedTuple):
    """One patch pair that a step needs, with the bytes that hold it."""

    position: int
    """Position in the split."""
    dihedral: int
    """Transform, 0 to 7."""
    left: int
    """Left edge of the crop, in LR pixels."""
    top: int
    """Top edge of the crop, in LR pixels."""
    chunk: PendingChunk


ReadChunk = Callable[[ChunkSlice], PendingChunk]
DeferredBatch = Callable[[], Batch]
"""The last part of a batch's work, for the thread of the step: on a GPU its commands must stay in order."""


def request_samples(
    slices: Iterator[ChunkSlice], read: ReadChunk, *, lead: int
) -> Iterator[SampleRequest]:
    """Yield the requests of one slot stream; the read of the next chunk starts `lead` samples ahead."""

    def read_next() -> tuple[ChunkSlice, PendingChunk]:
        chunk_slice = next(slices)
        return chunk_slice, read(chunk_slice)

    current = read_next()
    while True:
        (positions, dihedrals, corners), chunk = current
        following = None
        rows = zip(positions.tolist(), dihedrals.tolist(), corners.tolist(), strict=True)
        for number, (position, dihedral, (left, top)) in enumerate(rows):
            if following is None and len(positions) - number <= lead:
                following = read_next()
            yield SampleRequest(position, dihedral, left, top, chunk)
        current = following or read_next()


def load_batch(
    split: SplitReader,
    requests: list[SampleRequest],
    cache: PatchCache | None,
    *,
    side: int,
    pin: bool,
) -> Batch:
    """Decode the requested pairs, or copy them from the cache, as crops of `side` LR pixels."""
    lr_side, hr_side = stored_sides(split.manifest)
    scale = hr_side // lr_side
    lr = _empty_images(len(requests), side, pin=pin)
    hr = _empty_images(len(requests), scale * side, pin=pin)
    missing = [each for each in requests if cache is None or not cache.filled[each.position]]
    if cache is None and side == lr_side:
        _decode_pairs(split, missing, lr, hr)
    else:
        whole_lr = _empty_images(len(missing), lr_side, pin=False)
        whole_hr = _empty_images(len(missing), hr_side, pin=False)
        _decode_pairs(split, missing, whole_lr, whole_hr)
        if cache is not None:
            cache.put(_positions_of(missing), whole_lr, whole_hr)
            whole_lr, whole_hr = cache.lr, cache.hr
        outputs = zip(requests, lr.numpy(), hr.numpy(), strict=True)
        for number, (request, lr_out, hr_out) in enumerate(outputs):
            index = number if cache is None else request.position
            pair = whole_lr[index].numpy(), whole_hr[index].numpy()
            crop = crop_pair(*pair, left=request.left, top=request.top, side=side)
            lr_out[...], hr_out[...] = crop
    return Batch(lr, hr, _dihedrals_of(requests, pin=pin), _positions_of(requests))


def load_batch_on_device(
    split: SplitReader, requests: list[SampleRequest], cache: PatchCache, *, side: int, pin: bool
) -> DeferredBatch:
    """Decode the pairs that the device's cache lacks; the returned call stores them and gathers the batch."""
    missing = [each for each in requests if not cache.filled[each.position]]
    lr, hr = (_empty_images(len(missing), each, pin=pin) for each in stored_sides(split.manifest))
    _decode_pairs(split, missing, lr, hr)

    def gather() -> Batch:
        if missing:
            cache.put(_positions_of(missing), lr, hr)
        positions = _positions_of(requests)
        corners = np.array([(each.left, each.top) for each in requests], np.int64)
        images = cache.take(positions, corners, side=side)
        return Batch(*images, _dihedrals_of(requests, pin=pin), positions)

    return gather


def crop_pair(lr: RGB8, hr: RGB8, *, left: int, top: int, side: int) -> tuple[RGB8, RGB8]:
    """Return `side` LR pixels of a pair from (left, top) on, and the same place of HR."""
    scale = hr.shape[0] // lr.shape[0]
    x, y, size = scale * left, scale * top, scale * side
    return lr[top : top + side, left : left + side], hr[y : y + size, x : x + size]


def apply_dihedral(image: npt.NDArray[Pixel], dihedral: int) -> npt.NDArray[Pixel]:
    """Return a square image [h h ...] under one of the eight transforms: bit 2 mirrors, bits 0 and 1 turn by 90°."""
    if dihedral & 4:
        image = image[:, ::-1]
    return np.rot90(image, dihedral & 3)


def to_float_images(
    images: Tensor, device: torch.device, dihedrals: Tensor | None = None
) -> Tensor:
    """Move uint8 [B h w 3] to the device as float32 [B 3 h w] in [0, 1], channels last.

    `dihedrals` [B] transforms each square image as `apply_dihedral` does, on the device, by one gather.
    """
    moved = images.to(device, non_blocking=True)
    if dihedrals is not None:
        moved = _apply_dihedrals_on_device(moved, dihedrals.to(device, non_blocking=True))
    planes = moved.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.channels_last) / 255


def _apply_dihedrals_on_device(images: Tensor, dihedrals: Tensor) -> Tensor:
    count, side = len(images), images.shape[1]
    pixels = _dihedral_pixels(side, images.device)[dihedrals]  # [B h*w], within each image
    pixels = pixels + side * side * torch.arange(count, device=images.device)[:, None]
    return images.reshape(-1, 3).index_select(0, pixels.reshape(-1)).view(images.shape)


@lru_cache(maxsize=8)
def _dihedral_pixels(side: int, device: torch.device) -> Tensor:
    """Return the source pixel of each pixel of a square image under each transform: [8 side*side]."""
    pixels = np.arange(side * side).reshape(side, side)
    sources = [apply_dihedral(pixels, number).reshape(-1) for number in range(8)]
    return torch.from_numpy(np.stack(sources)).to(device)


def _decode_pairs(
    split: SplitReader, requests: list[SampleRequest], lr: Tensor, hr: Tensor
) -> None:
    located = [(each.chunk.block, each.position) for each in requests]
    split.decode(located, lr=lr.numpy(), hr=hr.numpy())


def _empty_images(count: int, side: int, *, pin: bool) -> Tensor:
    return torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=pin)


def _dihedrals_of(requests: list[SampleRequest], *, pin: bool) -> Tensor:
    dihedrals = torch.from_numpy(np.array([each.dihedral for each in requests], np.int64))
    return dihedrals.pin_memory() if pin else dihedrals


def _positions_of(requests: list[SampleRequest]) -> npt.NDArray[np.int64]:
    return np.array([each.position for each in requests], np.int64)
