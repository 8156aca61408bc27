"""Share of its time that a training step, real or fake, waits for the reader."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import msgspec
import torch

from shards.io.remote import Location
from shards.read.dataset import open_dataset
from trainer.bench.machine import synchronise
from trainer.config.schema import Config, DataConfig, Stage
from trainer.data.batches import to_float_images
from trainer.data.loader import PatchLoader
from trainer.device import use_bf16
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.training.acceleration import apply
from trainer.training.speed_settings import build_step, resolve
from trainer.training.state import build_state
from trainer.training.step import count_step

WARM_UP, STEPS = 5, 40


def data_wait(
    shards: Location,
    stage: Stage,
    config: Config,
    *,
    device: torch.device,
    content_weights: Path | None,
) -> float:
    """The share of the loop's time that it waits for its next batch, over some steps of training.

    Raises:
        UsageError: there are no shards, or less than one batch in them.
    """
    dataset, bf16 = open_dataset(shards), use_bf16(config, device)
    state = build_state(
        config,
        stage=stage,
        scale=dataset.manifest.scale,
        device=device,
        content_weights=content_weights,
    )
    state.generator.train()
    speed = resolve(config, device=device, bf16=bf16)
    apply(state, speed)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=speed)
    stream = PatchLoader(
        dataset.split("train"),
        seed=config.seed,
        batch_size=config.batch_size,
        first_step=0,
        config=config.data,
        device=device,
    )
    waited, start = 0.0, 0.0
    with closing(stream):
        for number in range(WARM_UP + STEPS):
            if number == WARM_UP:
                synchronise(device)
                waited, start = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            lr, hr = (
                to_float_images(each, device, batch.dihedrals) for each in (batch.lr, batch.hr)
            )
            count_step(state, config, step(lr, hr, False))
        synchronise(device)
    return waited / (time.perf_counter() - start)


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
