"""The state that a stage goes on from: rank 0 reads it, all ranks have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import Tensor

from trainer.config.schema import Config, Stage
from trainer.config.settings import flatten
from trainer.reporting.run_folder import rewind_metrics
from trainer.runs.best import forget_metric
from trainer.runs.checkpoint import (
    Position,
    best_file,
    check_same_run,
    forget_lost_best,
    load_good,
    load_last,
    remove_checkpoints_after,
)
from trainer.runs.session import StageSession
from trainer.training.speed_settings import settle
from trainer.training.state import TrainState, build_state, load_initial, restore, state_tensors
from trainer.weights.generators import load_initial_weights
from trainer.weights.safetensors_io import load_tensors

Saved = tuple[dict[str, Tensor], Position]
"""The tensors of a checkpoint, and where it stands."""


def load_same_run(
    run: Path,
    stage: Stage,
    config: Config,
    *,
    dataset_sha256: str,
    warn: Callable[[str], None],
) -> Saved | None:
    """The newest checkpoint of a stage, to go on from with these settings on these data; None: there is none.

    Raises:
        UsageError: it was made with others.
        DamagedData: there are checkpoints, and none of them can be read.
    """
    saved = load_last(run, stage, warn=warn)
    if saved is not None:
        check_same_run(saved[1], config, run=run, dataset_sha256=dataset_sha256)
    return saved


def resume_or_start(job: StageSession) -> TrainState:
    """The newest checkpoint, or a fresh state.

    Raises:
        UsageError: the run folder, the data or the weights do not fit the configuration.
    """
    saved = None
    if job.ranks.is_main:
        sha256 = job.dataset.manifest.dataset_sha256
        saved = load_same_run(job.run, job.stage, job.config, dataset_sha256=sha256, warn=job.warn)
        if saved is None and best_file(job.run, "psnr_y", job.stage).exists():
            job.warn(f"{job.run}: has no checkpoint to go on from; stage {job.stage} starts anew")
    state = _at(job, saved)
    _share(job, state)
    return state


def roll_back(
    job: StageSession, *, suspect: int | None, reached: int, speed: dict[str, str]
) -> TrainState:
    """The last good checkpoint, or a fresh state, with the order going on at `reached` patches."""
    saved = None
    if job.ranks.is_main:
        saved = load_good(job.run, job.stage, suspect=suspect, warn=job.warn)
    state = _at(job, saved)
    if job.ranks.is_main:
        state.speed = speed
        remove_checkpoints_after(job.run, job.stage, state.patches_seen)
    _share(job, state)
    state.skipped_patches = reached - state.patches_seen
    return state


def _at(job: StageSession, saved: Saved | None) -> TrainState:
    """What was saved, or else what the seed or the weights of an earlier stage give."""
    scale = job.dataset.manifest.scale
    state = build_state(
        job.config,
        stage=job.stage,
        scale=scale,
        device=job.device,
        content_weights=job.content_weights,
        synced=job.ranks.world_size > 1,
    )
    if saved is not None:
        _go_on(job, state, *saved)
    elif job.init is not None:
        load_initial(state, load_initial_weights(job.init, job.config.generator, scale=scale))
        state.start_psnr_y = _told_psnr_y(job.init, job.dataset.manifest.dataset_sha256)
    return state


def _told_psnr_y(weights: Path, dataset_sha256: str) -> float:
    """PSNR-Y of a file of weights as it tells itself, if that was measured on this data set; else 0."""
    _, about = load_tensors(weights)
    return (
        float(about.get("val_psnr_y", 0)) if about.get("dataset_sha256") == dataset_sha256 else 0.0
    )


def _go_on(
    job: StageSession, state: TrainState, tensors: dict[str, Tensor], position: Position
) -> None:
    """Bring a state to where a checkpoint stands; what was best of other patches is no more to be beaten."""
    restore(state, tensors)
    _place(state, position)
    held_out, asked = len(job.dataset.split("val")), job.config.validation.patches
    before = int(str(position.config.get("validation.patches", asked)))
    others = min(before or held_out, held_out) != min(asked or held_out, held_out)
    if others and state.best and state.patches_seen < job.config.total_patches:
        job.warn(
            f"validation.patches: was {before} and is {asked}, whose values do not compare;"
            " the next validation counts as the best again"
        )
        state.best.clear()


def _forget_other_lpips(job: StageSession, state: TrainState) -> None:
    """An LPIPS that another network measured is no more to be beaten."""
    if job.lpips is None or "lpips" not in state.best:
        return
    _, about = load_tensors(best_file(job.run, "lpips", job.stage))
    before = about.get("lpips", job.lpips.protocol)
    if before != job.lpips.protocol and state.patches_seen < job.config.total_patches:
        job.warn(
            f"--lpips: is {job.lpips.protocol} and was {before}, whose values do not compare;"
            " the next validation counts as the best again"
        )
        forget_metric(state.best, "lpips")


def _place(state: TrainState, position: Position) -> None:
    state.patches_seen, state.best = position.patches_seen, dict(position.best)
    state.skipped_patches, state.rollbacks = position.skipped_patches, position.rollbacks
    state.consecutive_skips, state.start_psnr_y = position.consecutive_skips, position.start_psnr_y
    state.speed = dict(position.speed)


def _share(job: StageSession, state: TrainState) -> None:
    """Give every rank what rank 0 has, and bring the run folder to where the state stands."""
    if job.ranks.is_main:
        settled = settle(
            job.config, device=job.device, world_size=job.ranks.world_size, stored=state.speed
        )
        state.speed = msgspec.structs.asdict(settled)
        rewind_metrics(job.run, stage=job.stage, patches_seen=state.patches_seen)
        forget_lost_best(job.run, state, warn=job.warn)
        _forget_other_lpips(job, state)
    if job.ranks.world_size > 1:
        tensors = job.ranks.broadcast_tensors(state_tensors(state))
        restore(state, tensors)
        position = Position.of(
            state, dataset_sha256=job.dataset.manifest.dataset_sha256, config=flatten(job.config)
        )
        _place(state, job.ranks.broadcast(position))
