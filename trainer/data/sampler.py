"""Order of the samples: a function of (data set, seed, step, batch size) and nothing else.

A pass over N samples cuts them into chunks of 64 neighbours. The grid of chunks shifts from pass to pass, so that
neighbours change. The chunks are permuted, the samples within each chunk, too, and all are laid end to end. The first
batch_size * steps places are cut into one *slot stream* for each slot of the batch; batch t takes sample t of every
stream. A batch therefore mixes as many chunks as it has slots, each stream reads one chunk at a time, and resuming
at a step means finding 64 samples in each stream, whichever rank read the steps before.

Random numbers are counter-based (Philox 4x64), keyed by data set, seed, pass and purpose: the numbers of a chunk
need none of the others, and nothing has to be stored.
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

ORDER_VERSION = 3
"""Stored in checkpoints; a run with another version cannot resume. Version 1 permuted single samples, version 2 drew
the dihedral transforms separately."""
CHUNK_SIZE = 64
"""Samples in a chunk: one read of 2 MB with patches of 128 pixels."""
_NUMBERS_PER_COUNT = 4
"""Numbers that Philox draws for one value of its counter."""

Ints = npt.NDArray[np.int64]


class ChunkSlice(NamedTuple):
    """Samples of one chunk, in the order of a pass or of one slot stream."""

    positions: Ints
    """[n], positions in the split."""
    dihedrals: Ints
    """[n], transform of each sample, 0 to 7: bit 2 mirrors, bits 0 and 1 count 90° turns."""
    corners: Ints
    """[n 2], left and top edge of each sample's crop, from 0 to `crop_slack`, in LR pixels."""


@dataclass(frozen=True)
class EpochSampler:
    """Order of all passes over a split."""

    samples: int
    """Number of samples of the split."""
    crop_slack: int
    """Largest distance of a crop from the left or upper edge, in LR pixels."""
    dataset_sha256: str
    seed: int
    batch_size: int
    """Size of the global batch."""
    augment: bool = True
    """Whether samples are flipped and turned; without, every transform is 0."""

    def slot_stream(self, slot: int, *, first_step: int) -> Iterator[ChunkSlice]:
        """Yield the samples of one slot of the batch from a step on, chunk by chunk, endlessly."""
        steps = steps_per_pass(self.samples, self.batch_size)
        number, step = divmod(first_step, steps)
        while True:
            place, stop = slot * steps + step, (slot + 1) * steps
            while place < stop:
                rest = plan_pass(self, number).slice_from(place)
                yield ChunkSlice(*(values[: stop - place] for values in rest))
                place += len(rest.positions)
            number, step = number + 1, 0


@dataclass(frozen=True)
class PassPlan:
    """Order of one pass over the samples of a split."""

    sampler: EpochSampler
    key: str
    """Data set, seed and number of the pass: the key of its random numbers."""
    phase: int
    """Samples in the first chunk of the grid, 1 to CHUNK_SIZE."""
    chunks: Ints
    """Numbers of the grid's chunks, in the order of the pass."""
    ends: Ints
    """Place at which each of them ends."""

    def slice_from(self, place: int) -> ChunkSlice:
        """Return the samples from a place to the end of its chunk."""
        index = int(np.searchsorted(self.ends, place, side="right"))
        chunk = int(self.chunks[index])
        first = max(self.phase + (chunk - 1) * CHUNK_SIZE, 0)
        stop = min(self.phase + chunk * CHUNK_SIZE, self.sampler.samples)
        drawn = _draw_numbers(f"{self.key} samples", first, stop)
        inside = np.argsort(drawn, kind="stable")[place - int(self.ends[index]) :]  # from its end
        low = drawn[inside].astype(np.int64)  # the order depends on the high bits
        dihedrals = low & 7 if self.sampler.augment else np.zeros_like(low)
        sixteen_bits = np.stack((low >> 3 & 0xFFFF, low >> 19 & 0xFFFF), axis=1)
        corners = sixteen_bits * (self.sampler.crop_slack + 1) >> 16
        return ChunkSlice(first + inside, dihedrals, corners)


@lru_cache(maxsize=2)  # at the end of a pass some streams already read the next one
def plan_pass(sampler: EpochSampler, number: int) -> PassPlan:
    """Return the order of pass `number`; time and memory grow with the number of chunks."""
    key = f"{sampler.dataset_sha256} {sampler.seed} {number}"
    phase = 1 + int(_draw_numbers(f"{key} phase", 0, 1)[0] % np.uint64(CHUNK_SIZE))
    count = 1 + -(-max(sampler.samples - phase, 0) // CHUNK_SIZE)
    chunks = np.argsort(_draw_numbers(f"{key} chunks", 0, count), kind="stable").astype(np.int64)
    edges = phase + CHUNK_SIZE * np.arange(-1, count, dtype=np.int64)
    sizes = np.diff(np.clip(edges, 0, sampler.samples))
    return PassPlan(sampler, key, phase, chunks, np.cumsum(sizes[chunks]))


def steps_per_pass(samples: int, batch_size: int) -> int:
    """Return the whole batches in one pass; the remaining samples, other ones in each pass, are left out.

    Raises:
        UsageError: the samples do not fill one batch.
    """
    if samples < batch_size:
        raise UsageError(
            f"batch_size: a step needs {batch_size} patches, the shards hold only {samples};"
            " cut more with prep-shards --patches-per-image, or lower batch_size"
        )
    return samples // batch_size


def slots_of_rank(batch_size: int, *, rank: int, world_size: int) -> range:
    """Return the slots of a global batch that a rank trains on.

    Raises:
        UsageError: the batch cannot be divided equally.
    """
    if batch_size % world_size:
        near = max(round(batch_size / world_size), 1) * world_size
        raise UsageError(
            f"batch_size: {batch_size} patches cannot be divided equally among {world_size} processes;"
            f" use batch_size={near}, or another number of processes"
        )
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def _draw_numbers(name: str, first: int, stop: int) -> npt.NDArray[np.uint64]:
    """Return numbers [first, stop) of the endless sequence that a name keys."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    count, skipped = divmod(first, _NUMBERS_PER_COUNT)
    numbers = np.random.Philox(key=key, counter=count).random_raw(stop - first + skipped)
    return np.asarray(numbers[skipped:], np.uint64)
