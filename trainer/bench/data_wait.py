"""Share of a training loop's time that it waits for batches: with real steps, or with steps that only sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import torch

from shards.io.remote import Location
from shards.read.dataset import open_dataset
from trainer.bench.timing import synchronise
from trainer.config.schema import Config, DataConfig, Stage
from trainer.data.batches import Batch, to_float_images
from trainer.data.loader import PatchLoader
from trainer.device import use_bf16
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.training.acceleration import apply
from trainer.training.speed_settings import build_step, resolve
from trainer.training.state import build_state
from trainer.training.step import count_step

WARM_UP, STEPS = 5, 40


class FakeRun(msgspec.Struct, frozen=True):
    """A training loop whose steps sleep for a known time."""

    steps: int
    batch_size: int
    workers: int
    step_ms: float
    patches_per_s: float
    data_wait_fraction: float
    """Share of the loop's time that it waits for its next batch."""


def measure_data_wait(
    shards: Location,
    stage: Stage,
    config: Config,
    *,
    device: torch.device,
    content_weights: Path | None,
) -> float:
    """Share of the loop's time that it waits for its next batch, over STEPS steps of training.

    Raises:
        UsageError: there are no shards, or they hold less than one batch.
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

    def train_on(batch: Batch) -> None:
        lr, hr = (to_float_images(each, device, batch.dihedrals) for each in (batch.lr, batch.hr))
        count_step(state, config, step(lr, hr, False))

    waited, seconds = _time_loop(stream, train_on, warm_up=WARM_UP, steps=STEPS, device=device)
    return waited / seconds


def run_fake_training(
    shards: Location, *, step_ms: float, batch_size: int, steps: int, config: DataConfig
) -> FakeRun:
    """Take batches and sleep `step_ms` with each; the first batch, which starts the threads, is not counted.

    Raises:
        UsageError: there are no shards, or they hold less than one batch.
    """
    split = open_dataset(shards).split("train")
    stream = PatchLoader(split, seed=0, batch_size=batch_size, first_step=0, config=config)
    waited, seconds = _time_loop(
        stream,
        lambda _: time.sleep(step_ms / 1000),
        warm_up=1,
        steps=steps,
        device=torch.device("cpu"),
    )
    return FakeRun(
        steps=steps,
        batch_size=batch_size,
        workers=config.workers,
        step_ms=step_ms,
        patches_per_s=round(steps * batch_size / seconds, 1),
        data_wait_fraction=round(waited / seconds, 5),
    )


def format_result(result: FakeRun) -> list[str]:
    """The result as lines of text."""
    return [
        f"{result.steps:,} steps of {result.step_ms:g} ms, batches of {result.batch_size},"
        f" {result.workers} workers: {result.patches_per_s:,.0f} patches/s,"
        f" {100 * result.data_wait_fraction:.2f} % of the time waiting for data"
    ]


def _time_loop(
    stream: PatchLoader,
    step: Callable[[Batch], None],
    *,
    warm_up: int,
    steps: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds that a loop waits for batches, and seconds of the loop, after `warm_up` steps."""
    waited, start = 0.0, 0.0
    with closing(stream):
        for number in range(warm_up + steps):
            if number == warm_up:
                synchronise(device)
                waited, start = 0.0, time.perf_counter()
            requested = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - requested
            step(batch)
        synchronise(device)
    return waited, time.perf_counter() - start
