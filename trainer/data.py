"""Batches out of shards: lanes of chunks (`trainer.order`), read ahead and decoded by threads.

Each lane asks for the bytes of a chunk at once, before they are due. A thread decodes a whole batch, another
plans what comes next; neither the number of threads nor that of processes changes which patches come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.dataset import Dataset
from shards.pieces import Block
from shards.reader import SplitReader
from trainer.cache import Store, check_cache
from trainer.config.schema import DataConfig
from trainer.loading import Batch, Chunk, Loaded, Read, Wanted, lane, load_batch, load_on_device
from trainer.order import CHUNK, Order, Visit, places_of, steps_per_pass

CPU = torch.device("cpu")
BATCHES_AHEAD = 3
_REQUESTS = 8
"""Ranges asked for at once where the shards are at a URL."""


S = TypeVar("S", bound=np.generic)


def with_cache(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with the folder where whole shards of a URL are kept."""
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else None
    return replace(dataset, cache=folder)


def check_data(
    split: SplitReader, batch_size: int, config: DataConfig, *, device: torch.device
) -> None:
    """Refuse a split that does not fill a batch, and a cache that does not hold the split.

    Raises:
        UsageError: names the setting.
    """
    steps_per_pass(len(split), batch_size)
    check_cache(split, cache=config.cache, gib=config.cache_gib, device=device)


def batches(
    split: SplitReader,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
) -> Generator[Batch]:
    """Endless batches from `first_step` on; of each global batch the share of one rank.

    Rank r of W gets places r*B/W to (r+1)*B/W of a global batch of B, which is the same for any W.

    Raises:
        UsageError: the split holds less than one batch, B cannot be shared by W, or the cache is too small.
        DamagedData: a sample is not what its index promises (when its batch is due).
    """
    manifest = split.manifest
    side = manifest.training_size // manifest.scale
    places = places_of(batch_size, rank=rank, world_size=world_size)
    check_data(split, batch_size, config, device=device)  # now, not with the first batch
    order = Order(
        samples=len(split),
        turns=config.augment,
        free=manifest.hr_size // manifest.scale - side,
        dataset_sha256=manifest.dataset_sha256,
        seed=seed,
        batch_size=batch_size,
    )

    store = None
    if config.cache != "none":
        store = Store(split, device if config.cache == "device" else CPU)
    pin = device.type == "cuda"

    def read(visit: Visit) -> Block:
        missing = visit.positions if store is None else store.missing(visit.positions)
        return split.block(int(missing.min()), int(missing.max()) + 1) if len(missing) else ()

    def load(wanted: list[Wanted]) -> Loaded:
        if store is not None and config.cache == "device":
            return load_on_device(split, wanted, store, side=side, pin=pin)
        batch = load_batch(split, wanted, store, side=side, pin=pin)
        return lambda: batch

    def requests(read: Read, *, ahead: bool) -> Iterator[list[Wanted]]:
        # lanes that ask at different times do not ask all at once
        leads = [CHUNK // 4 + place % (CHUNK // 2) if ahead else 0 for place in places]
        lanes = [
            lane(order.lane(place, first_step=first_step), read, lead=lead)
            for place, lead in zip(places, leads, strict=True)
        ]
        while True:
            yield [next(each) for each in lanes]

    if config.workers == 0:
        return (load(wanted)() for wanted in requests(lambda visit: _now(read, visit), ahead=False))
    readers = 1 if isinstance(split.location, Path) else _REQUESTS

    def by_threads() -> Generator[Batch]:
        due: SimpleQueue[Future[Loaded]] = SimpleQueue()
        room = threading.Semaphore(max(BATCHES_AHEAD, config.workers + 1))
        stopped = threading.Event()
        reading = ThreadPoolExecutor(readers, "read")
        decoding = ThreadPoolExecutor(config.workers, "decode", _use, (device,))

        def plan() -> None:
            try:
                asked = requests(lambda visit: Chunk(reading.submit(read, visit)), ahead=True)
                while room.acquire() and not stopped.is_set():
                    due.put(decoding.submit(load, next(asked)))
            except BaseException as error:
                failed: Future[Loaded] = Future()
                failed.set_exception(error)
                due.put(failed)

        # planned beside the step, too, which then waits for nothing but its patches
        planning = threading.Thread(target=plan, name="plan", daemon=True)
        planning.start()
        try:
            while True:
                batch = due.get().result()()
                room.release()
                yield batch
        finally:
            stopped.set()
            room.release()
            planning.join()
            reading.shutdown(wait=False, cancel_futures=True)
            decoding.shutdown(cancel_futures=True)

    return by_threads()


def turned(image: npt.NDArray[S], turn: int) -> npt.NDArray[S]:
    """One of the eight turns of a square image [h h ...]: bit 2 mirrors, bits 0 and 1 count 90° turns."""
    if turn & 4:
        image = image[:, ::-1]
    return np.rot90(image, turn & 3)


def to_float(images: Tensor, device: torch.device, turns: Tensor | None = None) -> Tensor:
    """uint8 [B h w 3] => float32 [B 3 h w] in [0, 1] on the device, channels last.

    `turns` [B] turns each square image as `turned` does, on the device and with one gather.
    """
    moved = images.to(device, non_blocking=True)
    if turns is not None:
        moved = _turned_on_device(moved, turns.to(device, non_blocking=True))
    planes = moved.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.channels_last) / 255


def _turned_on_device(images: Tensor, turns: Tensor) -> Tensor:
    count, side = len(images), images.shape[1]
    pixels = _pixels_of_turns(side, images.device)[turns]  # [B h*w] into the image's own
    pixels = pixels + side * side * torch.arange(count, device=images.device)[:, None]
    return images.reshape(-1, 3).index_select(0, pixels.reshape(-1)).view(images.shape)


@lru_cache(maxsize=8)
def _pixels_of_turns(side: int, device: torch.device) -> Tensor:
    """Where each pixel of a turned square image comes from: [8 side*side]."""
    pixels = np.arange(side * side).reshape(side, side)
    return torch.from_numpy(np.stack([turned(pixels, n).reshape(-1) for n in range(8)])).to(device)


def _now(read: Callable[[Visit], Block], visit: Visit) -> Chunk:
    done: Future[Block] = Future()
    done.set_result(read(visit))
    return Chunk(done)


def _use(device: torch.device) -> None:
    """Threads begin with the first GPU, and pinning memory there would make a context on it.

    A device without a number is that GPU, unless somebody chose another for the whole process.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
