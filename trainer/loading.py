"""From places in lanes to batches of patches: bytes asked for ahead, decoded, cropped, kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.pieces import Block
from shards.png import RGB8
from shards.reader import SplitReader
from trainer.cache import Store, stored_sides
from trainer.order import Visit


class Batch(NamedTuple):
    """One step's share of patches, uint8 RGB, not yet turned: `to_float` turns them on the device."""

    lr: Tensor
    """[B h w 3]; where the device is a GPU, in pinned memory or, with data.cache=device, on it."""
    hr: Tensor
    """[B sh sw 3]."""
    turns: Tensor
    """[B] 0 to 7."""
    positions: npt.NDArray[np.int64]
    """[B] in the split."""


class Wanted(NamedTuple):
    """One patch pair as a step wants it, and the bytes that it comes from."""

    position: int
    turn: int
    left: int
    """Of the crop, LR pixels."""
    top: int
    chunk: Chunk


class Chunk:
    """The bytes of a lane's samples of one chunk, which may be on their way."""

    __slots__ = ("_block", "_coming")

    def __init__(self, coming: Future[Block]) -> None:
        self._coming = coming
        self._block: Block | None = None

    @property
    def block(self) -> Block:
        """Waits for the bytes, and raises what reading them came upon."""
        if self._block is None:
            self._block = self._coming.result()
        return self._block


Read = Callable[[Visit], Chunk]
Loaded = Callable[[], Batch]
"""The rest of the work of a batch, for the step's own thread: on a GPU its order of commands."""


def lane(visits: Iterator[Visit], read: Read, *, lead: int) -> Iterator[Wanted]:
    """One place of the batch, sample by sample; the next chunk is asked for `lead` samples ahead."""

    def asked() -> tuple[Visit, Chunk]:
        visit = next(visits)
        return visit, read(visit)

    here = asked()
    while True:
        (positions, turns, corners), chunk = here
        coming = None
        rows = zip(positions.tolist(), turns.tolist(), corners.tolist(), strict=True)
        for number, (position, turn, (left, top)) in enumerate(rows):
            if coming is None and len(positions) - number <= lead:
                coming = asked()
            yield Wanted(position, turn, left, top, chunk)
        here = coming or asked()


def load_batch(
    split: SplitReader, wanted: list[Wanted], store: Store | None, *, side: int, pin: bool
) -> Batch:
    """Decode the pairs that a step wants, crops of `side` LR pixels, or copy those that the store holds."""
    low, high = stored_sides(split.manifest)
    scale = high // low
    lr, hr = _empty(len(wanted), side, pin=pin), _empty(len(wanted), scale * side, pin=pin)
    missing = [each for each in wanted if store is None or not store.there[each.position]]
    if store is None and side == low:
        _decode(split, missing, lr, hr)
    else:
        whole_lr, whole_hr = (_empty(len(missing), each, pin=False) for each in (low, high))
        _decode(split, missing, whole_lr, whole_hr)
        if store is not None:
            store.put(_positions(missing), whole_lr, whole_hr)
            whole_lr, whole_hr = store.lr, store.hr
        outs = zip(wanted, lr.numpy(), hr.numpy(), strict=True)
        for number, (each, lr_out, hr_out) in enumerate(outs):
            at = number if store is None else each.position
            pair = whole_lr[at].numpy(), whole_hr[at].numpy()
            lr_out[...], hr_out[...] = cropped(*pair, left=each.left, top=each.top, side=side)
    return Batch(lr, hr, _turns(wanted, pin=pin), _positions(wanted))


def load_on_device(
    split: SplitReader, wanted: list[Wanted], store: Store, *, side: int, pin: bool
) -> Loaded:
    """Decode what the store on the device lacks; what is returned puts it there and gathers the batch."""
    missing = [each for each in wanted if not store.there[each.position]]
    lr, hr = (_empty(len(missing), each, pin=pin) for each in stored_sides(split.manifest))
    _decode(split, missing, lr, hr)

    def gathered() -> Batch:
        if missing:
            store.put(_positions(missing), lr, hr)
        positions, corners = _positions(wanted), np.array([each[2:4] for each in wanted], np.int64)
        taken = store.take(positions, corners, side=side)
        return Batch(*taken, _turns(wanted, pin=pin), positions)

    return gathered


def cropped(lr: RGB8, hr: RGB8, *, left: int, top: int, side: int) -> tuple[RGB8, RGB8]:
    """Cut `side` LR pixels out of a pair at (left, top), and the same place out of HR."""
    scale = hr.shape[0] // lr.shape[0]
    x, y, size = scale * left, scale * top, scale * side
    return lr[top : top + side, left : left + side], hr[y : y + size, x : x + size]


def _decode(split: SplitReader, wanted: list[Wanted], lr: Tensor, hr: Tensor) -> None:
    located = [(each.chunk.block, each.position) for each in wanted]
    split.decode(located, lr=lr.numpy(), hr=hr.numpy())


def _empty(count: int, side: int, *, pin: bool) -> Tensor:
    return torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=pin)


def _turns(wanted: list[Wanted], *, pin: bool) -> Tensor:
    turns = torch.from_numpy(np.array([each.turn for each in wanted], np.int64))
    return turns.pin_memory() if pin else turns


def _positions(wanted: list[Wanted]) -> npt.NDArray[np.int64]:
    return np.array([each.position for each in wanted], np.int64)
