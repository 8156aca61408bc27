"""The loader: one thread plans requests, others read chunks and decode whole batches ahead of the step.

Each slot stream starts to read a chunk before its samples are due. The order of patches depends neither on the
number of threads nor on the number of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import torch

from shards.read.blocks import Block
from shards.read.dataset import Dataset
from shards.read.split import SplitReader
from trainer.config.schema import DataConfig
from trainer.data.batches import (
    Batch,
    DeferredBatch,
    PendingChunk,
    ReadChunk,
    SampleRequest,
    load_batch,
    load_batch_on_device,
    request_samples,
)
from trainer.data.patch_cache import PatchCache, check_cache_size
from trainer.data.sampler import CHUNK_SIZE, ChunkSlice, EpochSampler, slots_of_rank, steps_per_pass

CPU = torch.device("cpu")
BATCHES_AHEAD = 3
"""Smallest number of batches that wait decoded, or are being decoded, ahead of the step."""
PARALLEL_REQUESTS = 8
"""Byte ranges requested at a time from shards at a URL."""


def use_cache_dir(dataset: Dataset, config: DataConfig) -> Dataset:
    """Return the data set with the folder that keeps whole shards of a URL."""
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else None
    return replace(dataset, cache=folder)


def check_data(
    split: SplitReader, batch_size: int, config: DataConfig, *, device: torch.device
) -> None:
    """Check that a split fills a batch and fits into its cache.

    Raises:
        UsageError: names the setting.
    """
    steps_per_pass(len(split), batch_size)
    check_cache_size(split, cache=config.cache, gib=config.cache_gib, device=device)


class PatchLoader(Iterator[Batch]):
    """Endless batches of one rank, from a step on.

    Rank r of W gets slots r*B/W to (r+1)*B/W of each global batch of B; that batch is the same for any W.
    `next` returns a batch and raises DamagedData where a sample contradicts its index. `close` ends the threads.
    """

    def __init__(
        self,
        split: SplitReader,
        *,
        seed: int,
        batch_size: int,
        first_step: int,
        config: DataConfig,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """Check the settings and start the threads with the first `next`.

        Raises:
            UsageError: the split holds less than one batch, W does not divide B, or the cache is too small.
        """
        manifest = split.manifest
        self._split, self._config, self._device = split, config, device
        self._side = manifest.training_size // manifest.scale
        self._slots = slots_of_rank(batch_size, rank=rank, world_size=world_size)
        self._first_step = first_step
        check_data(split, batch_size, config, device=device)
        self._sampler = EpochSampler(
            samples=len(split),
            augment=config.augment,
            crop_slack=manifest.hr_size // manifest.scale - self._side,
            dataset_sha256=manifest.dataset_sha256,
            seed=seed,
            batch_size=batch_size,
        )
        self._cache: PatchCache | None = None
        if config.cache != "none":
            self._cache = PatchCache(split, device if config.cache == "device" else CPU)
        self._due: SimpleQueue[Future[DeferredBatch]] = SimpleQueue()
        self._room = threading.Semaphore(max(BATCHES_AHEAD, config.workers + 1))
        self._stopped = threading.Event()
        self._planner: threading.Thread | None = None
        self._in_thread: Iterator[list[SampleRequest]] | None = None
        if config.workers == 0:
            self._in_thread = self._request_batches(self._read_now, ahead=False)
            return
        readers = 1 if isinstance(split.location, Path) else PARALLEL_REQUESTS
        self._readers = ThreadPoolExecutor(readers, "read")
        self._decoders = ThreadPoolExecutor(config.workers, "decode", _use_device, (device,))
        # a thread of its own, so that the step waits for nothing but its patches
        self._planner = threading.Thread(target=self._plan, name="plan", daemon=True)

    def __next__(self) -> Batch:
        """Return the next batch."""
        if self._in_thread is not None:
            return self._load(next(self._in_thread))()
        assert self._planner is not None
        if self._stopped.is_set():
            raise StopIteration
        if self._planner.ident is None:
            self._planner.start()
        batch = self._due.get().result()()
        self._room.release()
        return batch

    def close(self) -> None:
        """End all threads and drop unused batches."""
        if self._planner is None or self._stopped.is_set():
            return
        self._stopped.set()
        self._room.release()
        if self._planner.ident is not None:
            self._planner.join()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _plan(self) -> None:
        """Submit the decoding of batch after batch while there is room; runs in the planner's thread."""
        try:
            requests = self._request_batches(self._read_ahead, ahead=True)
            while self._room.acquire() and not self._stopped.is_set():
                self._due.put(self._decoders.submit(self._load, next(requests)))
        except BaseException as error:  # the step's thread raises it with the batch that is due
            failed: Future[DeferredBatch] = Future()
            failed.set_exception(error)
            self._due.put(failed)

    def _request_batches(self, read: ReadChunk, *, ahead: bool) -> Iterator[list[SampleRequest]]:
        """Yield the requests of batch after batch."""
        # streams with different leads do not all read at the same time
        leads = [CHUNK_SIZE // 4 + slot % (CHUNK_SIZE // 2) if ahead else 0 for slot in self._slots]
        streams = [
            request_samples(
                self._sampler.slot_stream(slot, first_step=self._first_step), read, lead=lead
            )
            for slot, lead in zip(self._slots, leads, strict=True)
        ]
        while True:
            yield [next(stream) for stream in streams]

    def _load(self, requests: list[SampleRequest]) -> DeferredBatch:
        pin = self._device.type == "cuda"
        if self._cache is not None and self._config.cache == "device":
            return load_batch_on_device(
                self._split, requests, self._cache, side=self._side, pin=pin
            )
        batch = load_batch(self._split, requests, self._cache, side=self._side, pin=pin)
        return lambda: batch

    def _read(self, chunk_slice: ChunkSlice) -> Block:
        positions = chunk_slice.positions
        missing = positions if self._cache is None else self._cache.missing(positions)
        if not len(missing):
            return ()
        return self._split.block(int(missing.min()), int(missing.max()) + 1)

    def _read_ahead(self, chunk_slice: ChunkSlice) -> PendingChunk:
        return PendingChunk(self._readers.submit(self._read, chunk_slice))

    def _read_now(self, chunk_slice: ChunkSlice) -> PendingChunk:
        done: Future[Block] = Future()
        done.set_result(self._read(chunk_slice))
        return PendingChunk(done)


def _use_device(device: torch.device) -> None:
    """Select the GPU of a decoding thread: pinned memory would otherwise create a context on the first GPU.

    A device without a number means the GPU that the process has chosen.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
