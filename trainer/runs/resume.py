"""The state from which a stage starts, resumes or rolls back: rank 0 reads it and broadcasts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import Tensor

from trainer.config.schema import Config, Stage
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
"""The tensors of a checkpoint and its record."""


def load_same_run(
    run: Path,
    stage: Stage,
    config: Config,
    *,
    dataset_sha256: str,
    warn: Callable[[str], None],
) -> Saved | None:
    """Return the newest checkpoint of a stage if it may resume with these settings and data; None without one.

    Raises:
        UsageError: it was made with other settings or data.
        DamagedData: the stage has checkpoints but none is readable.
    """
    saved = load_last(run, stage, warn=warn)
    if saved is not None:
        check_same_run(saved[1], config, run=run, dataset_sha256=dataset_sha256)
    return saved


def resume_or_start(job: StageSession) -> TrainState:
    """Return the state of the newest checkpoint, or a fresh one.

    Raises:
        UsageError: the run folder, the data or the weights do not fit the configuration.
    """
    saved = None
    if job.ranks.is_main:
        sha256 = job.dataset.manifest.dataset_sha256
        saved = load_same_run(job.run, job.stage, job.config, dataset_sha256=sha256, warn=job.warn)
        if saved is None and best_file(job.run, "psnr_y", job.stage).exists():
            job.warn(f"{job.run}: no checkpoint to resume from; stage {job.stage} starts over")
    state = _build_state(job, saved)
    _broadcast(job, state)
    return state


def roll_back(
    job: StageSession, *, suspect: int | None, reached: int, speed: dict[str, str]
) -> TrainState:
    """Return the state of the last good checkpoint, or a fresh one; the patch order continues at `reached`.

    Args:
        job: the stage.
        suspect: position in patches of the checkpoint of the previous rollback; None without one.
        reached: position in the patch order, skipped patches included.
        speed: resolved acceleration of the stage.
    """
    saved = None
    if job.ranks.is_main:
        saved = load_good(job.run, job.stage, suspect=suspect, warn=job.warn)
    state = _build_state(job, saved)
    if job.ranks.is_main:
        state.progress.speed = speed
        remove_checkpoints_after(job.run, job.stage, state.progress.patches_seen)
    _broadcast(job, state)
    state.progress.skipped_patches = reached - state.progress.patches_seen
    return state


def _build_state(job: StageSession, saved: Saved | None) -> TrainState:
    """Return the saved state, or else one from the seed or from the weights of an earlier stage."""
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
        _restore(job, state, *saved)
    elif job.init is not None:
        load_initial(state, load_initial_weights(job.init, job.config.generator, scale=scale))
        state.progress.start_psnr_y = _stored_psnr_y(job.init, job.dataset.manifest.dataset_sha256)
    return state


def _stored_psnr_y(weights: Path, dataset_sha256: str) -> float:
    """Return the PSNR-Y in the metadata of weights, if it was measured on this data set; else 0."""
    _, about = load_tensors(weights)
    return (
        float(about.get("val_psnr_y", 0)) if about.get("dataset_sha256") == dataset_sha256 else 0.0
    )


def _restore(
    job: StageSession, state: TrainState, tensors: dict[str, Tensor], position: Position
) -> None:
    """Restore a checkpoint into a state; forget best values that other held-out patches gave."""
    restore(state, tensors)
    state.progress = position.progress()
    held_out, asked = len(job.dataset.split("val")), job.config.validation.patches
    before = int(str(position.config.get("validation.patches", asked)))
    others = min(before or held_out, held_out) != min(asked or held_out, held_out)
    if others and state.progress.best and state.progress.patches_seen < job.config.total_patches:
        job.warn(
            f"validation.patches: was {before} and is {asked}; their values do not compare,"
            " so the next validation becomes the best"
        )
        state.progress.best.clear()


def _forget_other_lpips(job: StageSession, state: TrainState) -> None:
    """Forget the best LPIPS if another network measured it."""
    if job.lpips is None or "lpips" not in state.progress.best:
        return
    _, about = load_tensors(best_file(job.run, "lpips", job.stage))
    before = about.get("lpips", job.lpips.protocol)
    if before != job.lpips.protocol and state.progress.patches_seen < job.config.total_patches:
        job.warn(
            f"--lpips: is {job.lpips.protocol} and was {before}; their values do not compare,"
            " so the next validation becomes the best"
        )
        forget_metric(state.progress.best, "lpips")


def _broadcast(job: StageSession, state: TrainState) -> None:
    """Give every rank the state of rank 0, and rewind the run folder to its position."""
    if job.ranks.is_main:
        settled = settle(
            job.config,
            device=job.device,
            world_size=job.ranks.world_size,
            stored=state.progress.speed,
        )
        state.progress.speed = msgspec.structs.asdict(settled)
        rewind_metrics(job.run, stage=job.stage, patches_seen=state.progress.patches_seen)
        forget_lost_best(job.run, state, warn=job.warn)
        _forget_other_lpips(job, state)
    if job.ranks.world_size > 1:
        tensors = job.ranks.broadcast_tensors(state_tensors(state))
        restore(state, tensors)
        state.progress = job.ranks.broadcast(state.progress)
