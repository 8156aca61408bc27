"""The training loop: one stage from its checkpoint to its end."""

from __future__ import annotations

import enum
import time
from contextlib import closing

import msgspec
import torch

from shards.errors import Stopped
from shards.read.split import SplitReader
from trainer.config.schema import Config, SpeedConfig
from trainer.data.batches import to_float_images
from trainer.data.loader import PatchLoader
from trainer.device import use_bf16
from trainer.evaluation.validation import render_samples, validate
from trainer.reporting.run_folder import write_run_header
from trainer.runs.best import find_improvements
from trainer.runs.checkpoint import final_file
from trainer.runs.log import EpochLog, describe_stage, summarise_row
from trainer.runs.resume import resume_or_start, roll_back
from trainer.runs.session import StageSession
from trainer.runs.writer import RunWriter
from trainer.training.acceleration import apply
from trainer.training.diagnostics import find_imbalances
from trainer.training.nonfinite import NonfiniteGuard
from trainer.training.optim import learning_rate, set_learning_rate
from trainer.training.speed_settings import build_step
from trainer.training.state import TrainState
from trainer.training.step import count_step


class Ending(enum.Enum):
    """Reasons why the training loop returns."""

    FINISHED = enum.auto()
    """All patches of the stage were seen."""
    ROLLBACK_DUE = enum.auto()
    """Too many steps in a row were skipped."""


def train_stage(job: StageSession) -> TrainState:
    """Train one stage to its end; a stopped or killed one resumes from its checkpoint.

    Raises:
        Stopped: on request, after saving.
        UsageError: the run folder, the data or the weights do not fit the configuration.
        WriteFailed: the run folder cannot be written to.
        UsrganError: losses are not finite after all rollbacks, or the ranks hold different weights.
    """
    writer, guard = RunWriter(job), NonfiniteGuard(job.config.guard, warn=job.warn)
    state = resume_or_start(job)
    if state.progress.patches_seen >= job.config.total_patches:
        job.say(f"stage {job.stage}: already finished ({state.progress.patches_seen:,} patches)")
        if not final_file(job.run, job.stage).exists():
            writer.write_final(state)
        return state
    if job.ranks.is_main:
        _introduce(job, state)
    while _train(job, state, guard, writer) is Ending.ROLLBACK_DUE:
        guard.check_rollback(state, run=job.run)
        before = state.progress
        del state  # memory may not hold two of them
        torch.cuda.empty_cache()  # nor a cache of patches beside memory that torch keeps
        reached = before.patches_seen + before.skipped_patches
        state = roll_back(job, suspect=guard.suspect, reached=reached, speed=before.speed)
        guard.suspect, state.progress.rollbacks = state.progress.patches_seen, before.rollbacks + 1
        job.warn(
            f"{job.run}: rolled back to {state.progress.patches_seen:,} patches of stage {job.stage}"
            f" ({state.progress.rollbacks} of {job.config.guard.rollbacks}); the patches up to the bad ones are skipped"
        )
    writer.write_final(state)
    return state


def _train(
    job: StageSession, state: TrainState, guard: NonfiniteGuard, writer: RunWriter
) -> Ending:
    """Train until the stage is finished or a rollback is due."""
    config, device, ranks = job.config, job.device, job.ranks
    train, val = job.dataset.split("train"), job.dataset.split("val")
    epoch = config.iterations_per_epoch * config.batch_size
    bf16 = use_bf16(config, device)
    speed = msgspec.convert(state.progress.speed, SpeedConfig)
    apply(state, speed)
    step = build_step(state, config, bf16, ranks=ranks, speed=speed)
    log, warned = EpochLog(), set[str]()
    stream = PatchLoader(
        train,
        seed=config.seed,
        batch_size=config.batch_size,
        first_step=(state.progress.patches_seen + state.progress.skipped_patches)
        // config.batch_size,
        config=config.data,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
    )
    state.generator.train()
    with (
        job.progress(
            f"stage {job.stage}",
            total=config.total_patches,
            unit="patches",
            done=state.progress.patches_seen,
        ) as advance,
        closing(train),
        closing(val),
        closing(stream),
    ):
        while state.progress.patches_seen < config.total_patches:
            # a step
            _set_learning_rates(state, config)
            waited = time.perf_counter()
            batch = next(stream)
            log.waited += time.perf_counter() - waited
            lr, hr = (
                to_float_images(images, device, batch.dihedrals) for images in (batch.lr, batch.hr)
            )
            outcome = step(lr, hr, job.stop_requested())
            count_step(state, config, outcome)
            log.steps += 1

            # was it applied?
            done = state.progress.patches_seen >= config.total_patches
            bad = guard.saw(state, outcome)
            ending = state.progress.patches_seen % epoch == 0
            due = done or guard.stopping or state.progress.patches_seen % _whole_steps(config) == 0
            if bad or ((due or ending) and guard.settle(state)):
                return Ending.ROLLBACK_DUE

            # at the end of an epoch: log, validate, keep the best
            note = ""
            if ending:
                row = log.row(state, config)
                state.losses, state.telemetry = {}, {}
                for warning in find_imbalances(row, warned):
                    job.warn(warning)
                if _validation_due(state.progress.patches_seen // epoch, config, val, done=done):
                    row |= _validate_and_keep_best(job, state, val, writer)
                writer.log(row)
                note = summarise_row(row)
                log = EpochLog()

            # checkpoint, but not within a series of skipped steps
            must = done or guard.stopping
            if (must or (due and not state.progress.consecutive_skips)) and writer.save(
                state, must=must
            ):
                guard.suspect = None
            advance(config.batch_size, note)
            if guard.stopping and not done:
                raise Stopped(
                    f"{job.run}: saved at {state.progress.patches_seen:,} of {config.total_patches:,} patches of stage"
                    f" {job.stage}; run the same command again to resume"
                )
    return Ending.FINISHED


def _introduce(job: StageSession, state: TrainState) -> None:
    """Print the header of the stage and write it into the run folder."""
    write_run_header(
        job.run,
        stage=job.stage,
        config=job.config,
        preset=job.preset,
        manifest=job.dataset.manifest,
        device=job.device,
        speed=state.progress.speed,
    )
    for line in describe_stage(job, state):
        job.say(line)
    if job.stage == "gan" and job.config.content.features == "random":
        job.warn("content.features is random: the content loss compares untrained features")


def _set_learning_rates(state: TrainState, config: Config) -> None:
    def rate(base: float) -> float:
        return learning_rate(
            config.optim,
            base,
            patches_seen=state.progress.patches_seen,
            patches_total=config.total_patches,
        )

    set_learning_rate(state.optimizer, rate(config.optim.lr))
    if state.adversary is not None:
        base = config.optim.discriminator_lr or config.optim.lr
        set_learning_rate(state.adversary.optimizer, rate(base))


def _whole_steps(config: Config) -> int:
    """Return `checkpoint.every_patches` rounded down to whole steps."""
    return max(config.checkpoint.every_patches // config.batch_size, 1) * config.batch_size


def _validation_due(epoch: int, config: Config, val: SplitReader, *, done: bool) -> bool:
    every = config.validation.every_epochs
    return bool(every and len(val) and (epoch % every == 0 or done))


def _validate_and_keep_best(
    job: StageSession, state: TrainState, val: SplitReader, writer: RunWriter
) -> dict[str, float]:
    """Score the generator on all ranks; rank 0 writes weights that beat the best."""
    found = validate(
        state.output,
        val,
        patches=job.config.validation.patches,
        device=job.device,
        group=job.ranks,
        lpips=None if job.lpips is None else job.lpips.metric_for,
    )
    if job.ranks.is_main:
        rule = job.config.validation
        won = find_improvements(
            found,
            state.progress.best,
            best_by=rule.best_by,
            psnr_drop=rule.psnr_drop,
            start_psnr_y=state.progress.start_psnr_y,
        )
        for metric, values in won.items():
            writer.write_best(state, metric, values, found)
        writer.write_sample(state, render_samples(state.output, val, device=job.device))
    return {f"val_{name}": value for name, value in found.items()}
