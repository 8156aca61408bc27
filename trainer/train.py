"""A whole `train-sr`: the stages one after the other in one run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from shards import files
from shards.errors import UsageError
from shards.reader import open_dataset
from shards.storage import Location
from trainer.checkpoint import best_file, has_last, weights_of
from trainer.config import PAPER, Config, Stage, load_config
from trainer.data import check_data, with_cache
from trainer.loop import Job, train_stage
from trainer.losses import build_content_features
from trainer.memory import within_memory
from trainer.report import write_report
from trainer.run import choose_device
from trainer.weights import load_matching


def train(
    *,
    run: Path,
    stages: dict[Stage, Config],
    preset: str,
    shards: Location,
    device: str,
    init: Path | None,
    content_weights: Path | None,
    dry_run: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    progress: Callable[..., AbstractContextManager[Callable[[int, str], None]]],
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Train the given stages; returns what `train-sr --json` prints.

    Everything that can be wrong with options, data and weights is found before the first step and
    before anything is written.
    """
    files.check_folder(run, option="--out")
    chosen = choose_device(device)
    dataset = open_dataset(shards)
    with_val = len(dataset.split("val")) > 0
    for stage, config in stages.items():
        check_data(dataset.split("train"), config.batch_size, config.data, device=chosen)
        if stage == "gan":
            build_content_features(config.content, weights=content_weights)
            if "psnr" not in stages and not has_last(run, "gan"):
                _gan_start(run, init, warn)
    if init is not None:
        load_matching(init, next(iter(stages.values())).generator, scale=dataset.manifest.scale)
    if not with_val:
        warn(
            f"{shards}: has no held-out patches, so nothing can be validated; the final weights are kept"
        )
    if dry_run:
        return {"run": str(run), "stages": [], "device": str(chosen)}

    results = []
    with files.locked(run, holder="train-sr"):
        for folder in (run, run / "samples", *(run / "checkpoints").glob("*")):
            files.sweep_temps(folder)
        for stage, config in stages.items():
            start = init
            if stage == "gan" and not has_last(run, "gan"):
                start = _gan_start(run, None if "psnr" in stages else init, warn)
            job = Job(
                run=run,
                stage=stage,
                config=config,
                preset=preset,
                paper=load_config(PAPER, stage=stage),
                dataset=with_cache(dataset, config.data),
                device=chosen,
                init=start,
                content_weights=content_weights,
                say=say,
                warn=warn,
                progress=progress,
                stop_requested=stop_requested,
            )
            with within_memory(
                str(run), fix="use a smaller batch_size; the checkpoints are intact"
            ):
                state = train_stage(job)
            results.append(
                {"stage": stage, "patches_seen": state.patches_seen, "best": dict(state.best)}
            )
            del state
            torch.cuda.empty_cache()
        report = write_report(run)
    weights = weights_of(run, list(stages)[-1], warn=warn)
    return {
        "run": str(run),
        "stages": results,
        "dataset_sha256": dataset.manifest.dataset_sha256,
        "weights": str(weights),
        "report": str(report),
    }


def _gan_start(run: Path, init: Path | None, warn: Callable[[str], None]) -> Path:
    """The weights that stage `gan` starts from."""
    path = init or weights_of(run, "psnr", warn=warn)
    if path is None or not path.is_file():
        raise UsageError(
            f"{path or best_file(run, 'psnr_y', 'psnr')}: stage gan starts from these weights and they are not there;"
            " run --stage psnr or both first, or give --init FILE"
        )
    return path
