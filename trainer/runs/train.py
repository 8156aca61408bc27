"""A whole `train-sr`: the stages one after the other in one run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from shards.errors import DamagedData, UsageError
from shards.io import atomic
from shards.io.remote import Location
from shards.read.dataset import open_dataset
from trainer.config.load import PAPER_PRESET, load_config
from trainer.config.schema import SMALLEST_PATCH, Config, Stage
from trainer.config.settings import SETTINGS, flatten
from trainer.data.loader import check_data, use_cache_dir
from trainer.device import choose_device, explain_out_of_memory, use_bf16
from trainer.distributed.heartbeat import Heartbeat, open_process_group
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.losses.content import (
    build_content_features,
    smallest_content_patch,
    unverified_weights_warning,
)
from trainer.perceptual.lpips import build_lpips
from trainer.reporting.report import write_report
from trainer.runs.checkpoint import best_file, deliverable_weights, has_last
from trainer.runs.resume import load_same_run
from trainer.runs.session import StageSession
from trainer.runs.stage import train_stage
from trainer.training.speed_settings import resolve
from trainer.weights.generators import load_initial_weights


def train(
    *,
    run: Path,
    stages: dict[Stage, Config],
    preset: str,
    shards: Location,
    device: str,
    init: Path | None,
    content_weights: Path | None,
    lpips: Path | None,
    dry_run: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    progress: Callable[..., AbstractContextManager[Callable[[int, str], None]]],
    stop_requested: Callable[[], bool],
    ranks: ProcessGroup = SINGLE_PROCESS,
    watch: Heartbeat | None = None,
) -> dict[str, Any]:
    """Train the given stages; returns what `train-sr --json` prints.

    Everything that can be wrong with options, data and weights is found before the first step and
    before anything is written. Of several ranks the first alone writes and speaks; the run folder
    need not be there for the others.
    """
    if ranks.is_main:
        atomic.check_folder(run, option="--out")
    else:
        say, warn, progress = _silently, _silently, _no_progress
    chosen = choose_device(device, ranks)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)
    dataset = open_dataset(shards)
    manifest = dataset.manifest
    with_val = len(dataset.split("val")) > 0
    alike = {
        "--shards": f"data set {manifest.dataset_sha256[:12]}",
        "--stage": " and ".join(stages),
    }
    for stage, config in stages.items():
        resolve(config, device=chosen, bf16=use_bf16(config, chosen), world=ranks.world_size)
        check_data(dataset.split("train"), config.batch_size, config.data, device=chosen)
        _check_divides(config, ranks)
        if config.validation.best_by == "lpips" and lpips is None:
            raise UsageError(
                "validation.best_by = lpips: needs the network that looks; give it with --lpips FILE"
            )
        if stage == "gan":
            judged, layer = config.discriminator.architecture, config.content.layer
            needs = {
                f"discriminator.architecture = {judged}": SMALLEST_PATCH[judged],
                f"content.layer = {layer}": smallest_content_patch(layer),
            }
            _check_sizes(needs, has=manifest.training_size, shards=shards)
            content = build_content_features(config.content, weights=content_weights)
            alike["--vgg"] = content.digest[:12] or "random"
            if warning := unverified_weights_warning(content):
                warn(warning)
            if ranks.is_main and "psnr" not in stages and not has_last(run, "gan"):
                _gan_start(run, init, warn)
    judge = None if lpips is None else build_lpips(lpips, device=chosen)
    alike["--lpips"] = "not given" if judge is None else judge.protocol
    if judge is not None:
        _check_sizes({f"--lpips {lpips}": judge.smallest}, has=manifest.hr_size, shards=shards)
        if judge.warning:
            warn(judge.warning)
    if init is not None:
        load_initial_weights(init, next(iter(stages.values())).generator, scale=manifest.scale)
    if not with_val:
        warn(
            f"{shards}: has no held-out patches, so nothing can be validated; the final weights are kept"
        )
    if dry_run:
        for stage, config in stages.items() if ranks.is_main else ():
            sha256 = manifest.dataset_sha256
            load_same_run(run, stage, config, dataset_sha256=sha256, warn=warn)
        return {"run": str(run), "stages": [], "device": str(chosen)}

    results = []
    with (
        _writing(run) if ranks.is_main else nullcontext(),
        open_process_group(ranks, watch, chosen),
    ):
        ranks.check_same_args(alike | _shared_settings(stages))
        for stage, config in stages.items():
            start = init if ranks.is_main else None
            if ranks.is_main and stage == "gan":
                start = _gan_start_if_needed(run, None if "psnr" in stages else init, warn)
            job = StageSession(
                run=run,
                stage=stage,
                config=config,
                preset=preset,
                paper=load_config(PAPER_PRESET, stage=stage),
                dataset=use_cache_dir(dataset, config.data),
                device=chosen,
                ranks=ranks,
                init=start,
                content_weights=content_weights,
                lpips=judge,
                say=say,
                warn=warn,
                progress=progress,
                stop_requested=stop_requested,
            )
            less = ", or speed.graph=none, which needs half the memory"
            less = f"use a smaller batch_size{less if chosen.type == 'cuda' else ''}"
            with explain_out_of_memory(str(run), fix=f"{less}; the checkpoints are intact"):
                state = train_stage(job)
            results.append(
                {"stage": stage, "patches_seen": state.patches_seen, "best": dict(state.best)}
            )
            del state
            torch.cuda.empty_cache()
        report = write_report(run) if ranks.is_main else None
    last, config = list(stages.items())[-1]
    weights = deliverable_weights(run, last, best_by=config.validation.best_by, warn=warn)
    return {
        "run": str(run),
        "stages": results,
        "dataset_sha256": manifest.dataset_sha256,
        "weights": str(weights),
        "report": str(report),
    }


@contextlib.contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Have the run folder for this process, without the temporaries of one that was killed."""
    with atomic.locked(run, holder="train-sr"):
        for folder in (run, run / "samples", *(run / "checkpoints").glob("*")):
            atomic.sweep_temps(folder)
        yield


def _shared_settings(stages: dict[Stage, Config]) -> dict[str, Any]:
    """The settings that all ranks of a job must agree on."""
    return {
        f"{stage}.{name}": value
        for stage, config in stages.items()
        for name, value in flatten(config).items()
        if not SETTINGS[name].policy.per_rank
    }


def _check_divides(config: Config, ranks: ProcessGroup) -> None:
    parts = ranks.world_size * config.accumulate
    if config.batch_size % parts:
        fitting = max(config.batch_size // parts, 1) * parts
        raise UsageError(
            f"batch_size: {config.batch_size} patches cannot be shared equally by {ranks.world_size} processes"
            f" with accumulate {config.accumulate}; use a multiple of {parts}, for example {fitting}"
        )


def _check_sizes(needs: dict[str, int], *, has: int, shards: Location) -> None:
    """Refuse patches that are too small for what looks at them."""
    for what, least in needs.items():
        if has < least:
            raise UsageError(
                f"{what}: needs patches of {least} pixels, and those of {shards} have {has};"
                " choose another, or make larger patches with prep-shards --hr-size"
            )


def _silently(_: str) -> None:
    """What the other ranks say."""


def _no_progress(*_: Any, **__: Any) -> AbstractContextManager[Callable[[int, str], None]]:  # noqa: ANN401  as progress has it
    return nullcontext(lambda steps, note: None)


def _gan_start(run: Path, init: Path | None, warn: Callable[[str], None]) -> Path:
    """The weights that stage `gan` starts from."""
    path = init or deliverable_weights(run, "psnr", best_by="psnr_y", warn=warn)
    if path is None or not path.is_file():
        raise UsageError(
            f"{path or best_file(run, 'psnr_y', 'psnr')}: stage gan starts from these weights and they are not there;"
            " run --stage psnr or both first, or give --init FILE"
        )
    return path


def _gan_start_if_needed(run: Path, init: Path | None, warn: Callable[[str], None]) -> Path | None:
    """The same; a run that goes on needs them only to roll back to its start, and may have lost them."""
    if not has_last(run, "gan"):
        return _gan_start(run, init, warn)
    with contextlib.suppress(UsageError, DamagedData):
        return _gan_start(run, init, _silently)
    return None
