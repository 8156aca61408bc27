"""The training loop: one stage from wherever it stands to its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import torch

from shards import __version__
from shards.errors import Stopped, UsrganError
from shards.reader import Dataset, SplitReader
from trainer.best import improvements
from trainer.checkpoint import (
    best_file,
    check_same_run,
    final_file,
    forget_lost_best,
    load_last,
    save_last,
    save_weights,
)
from trainer.config import Config, Stage, flat
from trainer.data import batches, to_float
from trainer.log import EpochLog, header, note_of
from trainer.optim import learning_rate, set_learning_rate, update_average
from trainer.run import (
    append_metrics,
    rewind_metrics,
    use_bf16,
    write_header,
    write_sample,
)
from trainer.state import TrainState, build_state, restore, start_from
from trainer.steps import STEPS
from trainer.telemetry import imbalances
from trainer.validate import sample_strip, validate
from trainer.weights import load_matching


@dataclass(frozen=True)
class Job:
    """What to train on what, and how to talk about it."""

    run: Path
    stage: Stage
    config: Config
    preset: str
    paper: Config
    """The paper's settings of this stage: the header names each deviation."""
    dataset: Dataset
    device: torch.device
    init: Path | None
    """Weights to start from; None: fresh ones."""
    content_weights: Path | None
    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[..., AbstractContextManager[Callable[[int, str], None]]]
    stop_requested: Callable[[], bool]


def train_stage(job: Job) -> TrainState:
    """Train one stage to its end; a run that was stopped or killed goes on where its checkpoint stands.

    Raises:
        Stopped: on request, after saving.
        UsageError: the run folder, the data or the weights do not fit the configuration.
        UsrganError: a loss is not finite any more.
    """
    config, run, device = job.config, job.run, job.device
    manifest = job.dataset.manifest
    train, val = job.dataset.split("train"), job.dataset.split("val")

    # a fresh state, or the last checkpoint
    state = build_state(
        config,
        stage=job.stage,
        scale=manifest.scale,
        device=device,
        content_weights=job.content_weights,
    )
    saved = load_last(run, job.stage, warn=job.warn)
    if saved is not None:
        tensors, position = saved
        check_same_run(position, config, run=run, dataset_sha256=manifest.dataset_sha256)
        restore(state, tensors)
        state.patches_seen, state.best = position.patches_seen, dict(position.best)
    else:
        if best_file(run, "psnr_y", job.stage).exists():
            job.warn(f"{run}: has no checkpoint to go on from; stage {job.stage} starts anew")
        if job.init is not None:
            start_from(state, load_matching(job.init, config.generator, scale=manifest.scale))
    rewind_metrics(run, stage=job.stage, patches_seen=state.patches_seen)
    if state.patches_seen >= config.total_patches:
        job.say(f"stage {job.stage}: done before ({state.patches_seen:,} patches)")
        if not final_file(run, job.stage).exists():
            save_weights(final_file(run, job.stage), state, _metadata(job, state, {}))
        return state
    forget_lost_best(run, state, warn=job.warn)
    stream = batches(
        train,
        seed=config.seed,
        batch_size=config.batch_size,
        first_step=state.patches_seen // config.batch_size,
        config=config.data,
        device=device,
    )
    write_header(
        run, stage=job.stage, config=config, preset=job.preset, manifest=manifest, device=device
    )
    for line in header(
        job.stage, config, job.paper, state, job.dataset, device=device, start=job.init
    ):
        job.say(line)
    if job.stage == "gan" and config.content.features == "random":
        job.warn("content.features is random: the content loss compares untrained features")

    # steps
    step, bf16 = STEPS[job.stage], use_bf16(config, device)
    epoch = config.iterations_per_epoch * config.batch_size
    log, told = EpochLog(), set[str]()
    state.generator.train()
    with (
        job.progress(
            f"stage {job.stage}",
            total=config.total_patches,
            unit="patches",
            done=state.patches_seen,
        ) as advance,
        closing(stream),
    ):
        while state.patches_seen < config.total_patches:
            _set_learning_rates(state, config)
            waited = time.perf_counter()
            batch = next(stream)
            log.waited += time.perf_counter() - waited
            lr, hr = (to_float(images, device, batch.turns) for images in (batch.lr, batch.hr))
            losses = step(state, config, lr, hr, bf16)
            state.patches_seen += config.batch_size
            for name, value in losses.items():
                state.losses[name] = state.losses[name] + value if name in state.losses else value
            log.steps += 1
            if state.average is not None:
                update_average(
                    state.average,
                    state.generator,
                    halflife=config.ema.halflife_patches,
                    batch_size=config.batch_size,
                    patches_seen=state.patches_seen,
                )

            # at the end of an epoch: log, validate, keep the best
            done = state.patches_seen >= config.total_patches
            note = ""
            if state.patches_seen % epoch == 0:
                row = log.row(state, config)
                state.losses, state.telemetry = {}, {}
                _check_finite(row, run=run)
                for warning in imbalances(row, told):
                    job.warn(warning)
                if _validation_due(state.patches_seen // epoch, config, val, done=done):
                    row |= _validate_and_keep_best(job, state, val)
                append_metrics(run, row)
                note = note_of(row)
                log = EpochLog()

            # checkpoint
            stopping = job.stop_requested()
            if done or stopping or state.patches_seen % _whole_steps(config) == 0:
                save_last(run, state, config, dataset_sha256=manifest.dataset_sha256)
            advance(config.batch_size, note)
            if stopping and not done:
                raise Stopped(
                    f"{run}: saved at {state.patches_seen:,} of {config.total_patches:,} patches of stage"
                    f" {job.stage}; run the same command again to go on"
                )
    save_weights(final_file(run, job.stage), state, _metadata(job, state, {}))
    return state


def _set_learning_rates(state: TrainState, config: Config) -> None:
    def rate(base: float) -> float:
        return learning_rate(
            config.optim, base, patches_seen=state.patches_seen, patches_total=config.total_patches
        )

    set_learning_rate(state.optimizer, rate(config.optim.lr))
    if state.adversary is not None:
        base = config.optim.discriminator_lr or config.optim.lr
        set_learning_rate(state.adversary.optimizer, rate(base))


def _whole_steps(config: Config) -> int:
    """`checkpoint.every_patches` in whole steps."""
    return max(config.checkpoint.every_patches // config.batch_size, 1) * config.batch_size


def _validation_due(epoch: int, config: Config, val: SplitReader, *, done: bool) -> bool:
    every = config.validation.every_epochs
    return bool(every and len(val) and (epoch % every == 0 or done))


def _validate_and_keep_best(job: Job, state: TrainState, val: SplitReader) -> dict[str, float]:
    found = validate(state.output, val, patches=job.config.validation.patches, device=job.device)
    rule = job.config.validation
    won = improvements(found, state.best, best_by=rule.best_by, psnr_drop=rule.psnr_drop)
    for metric, values in won.items():
        state.best |= values
        save_weights(best_file(job.run, metric, state.stage), state, _metadata(job, state, found))
    picture = sample_strip(state.output, val, device=job.device)
    write_sample(job.run, stage=state.stage, patches_seen=state.patches_seen, picture=picture)
    return {f"val_{name}": value for name, value in found.items()}


def _metadata(job: Job, state: TrainState, found: dict[str, float]) -> dict[str, str]:
    settings = flat(job.config)
    return {
        "architecture": settings["generator.architecture"],
        **{name: str(value) for name, value in settings.items() if name.startswith("generator.")},
        "scale": str(job.dataset.manifest.scale),
        "stage": state.stage,
        "preset": job.preset,
        "weights": "raw" if state.average is None else "ema",
        "patches_seen": str(state.patches_seen),
        **{f"val_{name}": f"{value:.4f}" for name, value in found.items()},
        "content_features": job.config.content.features if state.stage == "gan" else "none",
        "dataset_sha256": job.dataset.manifest.dataset_sha256,
        "usrgan": __version__,
    }


def _check_finite(row: dict[str, float | int | str], *, run: Path) -> None:
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsrganError(
                f"{run}: {name} is {value} at {row['patches_seen']:,} patches; the checkpoints are intact:"
                " lower optim.lr, raise optim.warmup_patches, or train with precision fp32, in another --out"
            )
