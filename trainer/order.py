"""Which sample stands where in a batch: a function of (data set, seed, step, batch size) and nothing else.

A pass over N samples cuts them into chunks of 64 neighbours, on a grid that is shifted from pass to pass
so that neighbours change. Chunks are permuted, the samples inside each as well, and all are laid end to
end. The first batch_size * steps places are cut into one *lane* for each place of the batch; batch t is
sample t of every lane. So a batch mixes as many chunks as it has places, each lane reads one chunk at a
time, and resuming at a step is finding 64 samples in each lane, whoever read the steps before.

Random numbers are counter-based (Philox 4x64), keyed by data set, seed, pass and purpose: those of a
chunk come without those of the rest, and nothing has to be stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import UsageError

ORDER = 3
"""Of checkpoints: another order is another run. 1 was a permutation of single samples, 2 drew turns apart."""
CHUNK = 64
"""Samples in a chunk: with patches of 128 pixels a read of 2 MB."""
_PER_COUNT = 4
"""Numbers that one count of Philox gives."""

Ints = npt.NDArray[np.int64]


class Visit(NamedTuple):
    """Samples of one chunk in the order in which a pass, or a lane of it, shows them."""

    positions: Ints
    turns: Ints
    """Of each sample, 0 to 7: bit 2 mirrors, bits 0 and 1 count 90° turns."""
    corners: Ints
    """Of each sample's crop [n 2], left and top, from 0 up to `free`."""


@dataclass(frozen=True)
class Order:
    """The order of all passes over a split."""

    samples: int
    free: int
    """How far a crop can lie from the left or upper edge, LR pixels."""
    dataset_sha256: str
    seed: int
    batch_size: int
    """Of the global batch."""
    turns: bool = True
    """Without, every turn is 0."""

    def lane(self, number: int, *, first_step: int) -> Iterator[Visit]:
        """What place `number` of the batch shows from a step on, chunk by chunk, without end."""
        steps = steps_per_pass(self.samples, self.batch_size)
        passed, step = divmod(first_step, steps)
        while True:
            place, stop = number * steps + step, (number + 1) * steps
            while place < stop:
                visit = plan_pass(self, passed).visit(place)
                yield Visit(*(each[: stop - place] for each in visit))
                place += len(visit.positions)
            passed, step = passed + 1, 0


@dataclass(frozen=True)
class Pass:
    """One pass over the samples of a split."""

    order: Order
    name: str
    """Data set, seed and number of the pass: what its random numbers are keyed by."""
    phase: int
    """Samples in the first chunk of the grid, 1 to CHUNK."""
    chunks: Ints
    """Numbers of the grid's chunks, in the order in which they are laid."""
    ends: Ints
    """The place where each of them ends."""

    def visit(self, place: int) -> Visit:
        """What lies from `place` to the end of its chunk."""
        laid = int(np.searchsorted(self.ends, place, side="right"))
        chunk = int(self.chunks[laid])
        first = max(self.phase + (chunk - 1) * CHUNK, 0)
        stop = min(self.phase + chunk * CHUNK, self.order.samples)
        drawn = _draws(f"{self.name} samples", first, stop)
        inside = np.argsort(drawn, kind="stable")[place - int(self.ends[laid]) :]  # from its end
        low = drawn[inside].astype(np.int64)  # the order is that of the high bits
        turns = low & 7 if self.order.turns else np.zeros_like(low)
        sixteens = np.stack((low >> 3 & 0xFFFF, low >> 19 & 0xFFFF), axis=1)
        return Visit(first + inside, turns, sixteens * (self.order.free + 1) >> 16)


@lru_cache(maxsize=2)  # at the end of a pass some lanes look into the next
def plan_pass(order: Order, number: int) -> Pass:
    """The order of pass `number`; costs the number of chunks, in time and memory."""
    name = f"{order.dataset_sha256} {order.seed} {number}"
    phase = 1 + int(_draws(f"{name} phase", 0, 1)[0] % np.uint64(CHUNK))
    count = 1 + -(-max(order.samples - phase, 0) // CHUNK)
    chunks = np.argsort(_draws(f"{name} chunks", 0, count), kind="stable").astype(np.int64)
    edges = phase + CHUNK * np.arange(-1, count, dtype=np.int64)
    sizes = np.diff(np.clip(edges, 0, order.samples))
    return Pass(order, name, phase, chunks, np.cumsum(sizes[chunks]))


def steps_per_pass(samples: int, batch_size: int) -> int:
    """Whole batches in one pass over the data; the rest of a pass (other samples each time) is left."""
    if samples < batch_size:
        raise UsageError(
            f"batch_size: {batch_size} patches a step, but the shards hold only {samples};"
            " cut more with prep-shards --patches-per-image or lower batch_size"
        )
    return samples // batch_size


def places_of(batch_size: int, *, rank: int, world_size: int) -> range:
    """The places of a global batch that a rank trains on."""
    if batch_size % world_size:
        near = max(round(batch_size / world_size), 1) * world_size
        raise UsageError(
            f"batch_size: {batch_size} patches cannot be shared by {world_size} processes;"
            f" take batch_size={near}, or another number of processes"
        )
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def _draws(name: str, first: int, stop: int) -> npt.NDArray[np.uint64]:
    """Numbers [first, stop) of the endless sequence of that name."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    count, skipped = divmod(first, _PER_COUNT)
    found = np.random.Philox(key=key, counter=count).random_raw(stop - first + skipped)
    return np.asarray(found[skipped:], np.uint64)
