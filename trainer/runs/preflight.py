"""Every check before the first step: options, data, weights and sizes, before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import DamagedData, UsageError
from shards.io import atomic
from shards.io.remote import Location
from shards.read.dataset import Dataset, open_dataset
from trainer.config.schema import SMALLEST_PATCH, Config, Stage
from trainer.config.settings import SETTINGS, flatten
from trainer.data.loader import check_data
from trainer.device import choose_device, use_bf16
from trainer.distributed.process_group import ProcessGroup
from trainer.losses.content import (
    build_content_features,
    smallest_content_patch,
    unverified_weights_warning,
)
from trainer.perceptual.lpips import build_lpips
from trainer.perceptual.metric import PerceptualMetric
from trainer.runs.checkpoint import best_file, deliverable_weights, has_last
from trainer.runs.session import RunRequest
from trainer.training.speed_settings import resolve
from trainer.weights.generators import load_initial_weights

Warn = Callable[[str], None]


@dataclass(frozen=True)
class CheckedRun:
    """A request that passed all checks, with what the checks opened."""

    request: RunRequest
    device: torch.device
    dataset: Dataset
    lpips: PerceptualMetric | None
    same_args: dict[str, Any]
    """Arguments that every rank must share."""


def check_run(request: RunRequest, *, ranks: ProcessGroup, warn: Warn) -> CheckedRun:
    """Check a request as far as that is possible without training or writing.

    Raises:
        UsageError: an option, a setting, the data or the weights cannot be used; names which and the fix.
    """
    # device and data
    if ranks.is_main:
        atomic.check_folder(request.run, option="--out")
    device = choose_device(request.device, ranks)
    if device.index is not None:
        torch.cuda.set_device(device)
    dataset = open_dataset(request.shards)
    manifest = dataset.manifest
    same_args: dict[str, Any] = {
        "--shards": f"data set {manifest.dataset_sha256[:12]}",
        "--stage": " and ".join(request.stages),
    }

    # each stage
    for stage, config in request.stages.items():
        resolve(config, device=device, bf16=use_bf16(config, device), world=ranks.world_size)
        check_data(dataset.split("train"), config.batch_size, config.data, device=device)
        _check_batch_divides(config, ranks)
        if config.validation.best_by == "lpips" and request.lpips is None:
            raise UsageError(
                "validation.best_by = lpips: needs the network of LPIPS; give it with --lpips FILE"
            )
        if stage == "gan":
            same_args["--vgg"] = _check_stage_gan(request, config, manifest.training_size, warn)
            if ranks.is_main and "psnr" not in request.stages and not has_last(request.run, "gan"):
                find_gan_start(request.run, request.init, warn)

    # perceptual metric, initial weights, held-out patches
    lpips = None if request.lpips is None else build_lpips(request.lpips, device=device)
    same_args["--lpips"] = "not given" if lpips is None else lpips.protocol
    if lpips is not None:
        needs = {f"--lpips {request.lpips}": lpips.smallest}
        _check_patch_sizes(needs, side=manifest.hr_size, shards=request.shards)
        if lpips.warning:
            warn(lpips.warning)
    if request.init is not None:
        first = next(iter(request.stages.values()))
        load_initial_weights(request.init, first.generator, scale=manifest.scale)
    if not len(dataset.split("val")):
        warn(
            f"{request.shards}: no held-out patches; nothing is validated and the final weights are kept"
        )
    return CheckedRun(request, device, dataset, lpips, same_args | _shared_settings(request.stages))


def find_gan_start(run: Path, init: Path | None, warn: Warn) -> Path:
    """Return the weights that stage gan starts from: `init`, or those that stage psnr delivers.

    Raises:
        UsageError: there are none.
    """
    path = init or deliverable_weights(run, "psnr", best_by="psnr_y", warn=warn)
    if path is None or not path.is_file():
        raise UsageError(
            f"{path or best_file(run, 'psnr_y', 'psnr')}: missing; stage gan starts from these weights:"
            " run --stage psnr or both first, or give --init FILE"
        )
    return path


def find_gan_start_if_needed(run: Path, init: Path | None, warn: Warn) -> Path | None:
    """Return the same; a resumed stage gan needs it only to roll back to its start, and gets None if it is gone."""
    if not has_last(run, "gan"):
        return find_gan_start(run, init, warn)
    with contextlib.suppress(UsageError, DamagedData):
        return find_gan_start(run, init, lambda _line: None)
    return None


def _check_stage_gan(request: RunRequest, config: Config, side: int, warn: Warn) -> str:
    """Check discriminator and content loss; return the digest of VGG-19's weights."""
    architecture, layer = config.discriminator.architecture, config.content.layer
    needs = {
        f"discriminator.architecture = {architecture}": SMALLEST_PATCH[architecture],
        f"content.layer = {layer}": smallest_content_patch(layer),
    }
    _check_patch_sizes(needs, side=side, shards=request.shards)
    content = build_content_features(config.content, weights=request.content_weights)
    if warning := unverified_weights_warning(content):
        warn(warning)
    return content.digest[:12] or "random"


def _check_batch_divides(config: Config, ranks: ProcessGroup) -> None:
    parts = ranks.world_size * config.accumulate
    if config.batch_size % parts:
        fitting = max(config.batch_size // parts, 1) * parts
        raise UsageError(
            f"batch_size: {config.batch_size} patches cannot be shared equally by {ranks.world_size} processes"
            f" with accumulate {config.accumulate}; use a multiple of {parts}, for example {fitting}"
        )


def _check_patch_sizes(needs: dict[str, int], *, side: int, shards: Location) -> None:
    """Refuse patches that are smaller than a network needs, in pixels a side."""
    for name, least in needs.items():
        if side < least:
            raise UsageError(
                f"{name}: needs patches of {least} pixels, those of {shards} have {side};"
                " choose another, or make larger patches with prep-shards --hr-size"
            )


def _shared_settings(stages: dict[Stage, Config]) -> dict[str, Any]:
    """Return the settings that all ranks of a job must share."""
    return {
        f"{stage}.{name}": value
        for stage, config in stages.items()
        for name, value in flatten(config).items()
        if not SETTINGS[name].policy.per_rank
    }
