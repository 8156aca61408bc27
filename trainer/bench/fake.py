"""`bench-sr train --fake-step`: the real reader before a step that only waits, as for a busy GPU."""

from __future__ import annotations

import time
from contextlib import closing

import msgspec

from shards.io.remote import Location
from shards.read.dataset import open_dataset
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader


class FakeRun(msgspec.Struct, frozen=True):
    """How a training run with steps of a known length went."""

    steps: int
    batch_size: int
    workers: int
    step_ms: float
    patches_per_s: float
    data_wait_fraction: float
    """Of the time of a step, the part in which it waited for its batch."""


def fake_train(
    shards: Location, *, step_ms: float, batch_size: int, steps: int, config: DataConfig
) -> FakeRun:
    """Take batches and wait `step_ms` with each; the first batch, which starts the threads, is not counted.

    Raises:
        UsageError: there is no such data set, or it does not fill a batch.
    """
    split = open_dataset(shards).split("train")
    stream = PatchLoader(split, seed=0, batch_size=batch_size, first_step=0, config=config)
    waited = 0.0
    with closing(stream):
        next(stream)
        started = time.perf_counter()
        for _ in range(steps):
            time.sleep(step_ms / 1000)
            asked = time.perf_counter()
            next(stream)
            waited += time.perf_counter() - asked
        seconds = time.perf_counter() - started
    return FakeRun(
        steps=steps,
        batch_size=batch_size,
        workers=config.workers,
        step_ms=step_ms,
        patches_per_s=round(steps * batch_size / seconds, 1),
        data_wait_fraction=round(waited / seconds, 5),
    )


def lines(found: FakeRun) -> list[str]:
    """The result for a person."""
    return [
        f"{found.steps:,} steps of {found.step_ms:g} ms, batches of {found.batch_size},"
        f" {found.workers} workers: {found.patches_per_s:,.0f} patches/s,"
        f" {100 * found.data_wait_fraction:.2f} % of the time waiting for data"
    ]
