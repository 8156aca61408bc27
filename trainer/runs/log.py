"""The header of a stage, a row of `metrics.jsonl` per epoch, and the note behind the progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterator

from trainer.config.paper import describe_patches, list_deviations, list_patch_deviations
from trainer.config.schema import Config
from trainer.device import describe_device, describe_precision, use_bf16
from trainer.evaluation.validation import validate_bicubic
from trainer.runs.session import StageSession
from trainer.training import diagnostics
from trainer.training.speed_settings import missing_fast_path
from trainer.training.state import COUNTED, TrainState


def describe_stage(job: StageSession, state: TrainState) -> Iterator[str]:
    """Yield the header of a stage: network, data, and each deviation from the paper."""
    config, device, dataset = job.config, job.device, job.dataset
    val = dataset.split("val")
    weights = sum(parameter.numel() for parameter in state.generator.parameters())
    yield (
        f"stage {job.stage}: {weights:,} generator weights on {describe_device(device)},"
        f" {describe_precision(config, device)};"
        f" {len(dataset.split('train')):,} training and {len(val):,} held-out patches"
        f" ({dataset.manifest.dataset_sha256[:12]})"
    )
    if len(val):
        bicubic = validate_bicubic(val, patches=config.validation.patches)
        yield f"  to beat: bicubic {bicubic['psnr_y']:.2f} dB / {bicubic['ssim_y']:.4f} on Y"
        if job.lpips is not None:
            yield f"  perceptual metric: {job.lpips.protocol}"
    if reason := missing_fast_path(config, device=device, bf16=use_bf16(config, device)):
        yield f"  steps are slower than this machine allows: {reason}"
    if state.progress.speed.get("dense") == "fused":
        yield "  the first step compiles kernels for this GPU, in up to half a minute; they are cached"
    if state.progress.patches_seen:
        yield f"  resuming at {state.progress.patches_seen:,} patches"
    elif job.init is not None:
        yield f"  starting from {job.init}"
    found = list_deviations(config, job.paper, stage=job.stage)
    found |= list_patch_deviations(describe_patches(dataset.manifest))
    for name, (ours, papers) in found.items():
        yield f"  deviates from the paper: {name} = {ours} (paper: {papers})"


class EpochLog:
    """Times of the steps of an epoch in this process; the losses are in the state."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    def row(self, state: TrainState, config: Config) -> dict[str, float | int | str]:
        """Return a line of `metrics.jsonl`: means over the applied steps. Only this call reads them from the device."""
        sums = {name: value.item() for name, value in state.losses.items()}
        counted = sums.pop(COUNTED, 0.0)
        steps = config.iterations_per_epoch
        means = {f"loss_{name}": value / counted for name, value in sums.items() if counted}
        skipped = {"steps_left_out": steps - int(counted)} if counted < steps else {}
        seconds = time.perf_counter() - self.started
        return {
            "stage": state.stage,
            "epoch": state.progress.patches_seen // (steps * config.batch_size),
            "patches_seen": state.progress.patches_seen,
            **means,
            **skipped,
            **diagnostics.mean_diagnostics(state.telemetry),
            "lr": float(state.optimizer.param_groups[0]["lr"]),  # on a GPU a tensor there
            "patches_per_s": self.steps * config.batch_size / seconds,
            "data_wait": self.waited / seconds,
        }


def summarise_row(row: dict[str, float | int | str]) -> str:
    """Return a row in a few words."""
    shown = {"loss_pixel": "L1", "loss_adversarial": "adv", "loss_discriminator": "D"}
    parts = [f"{short} {row[name]:.4f}" for name, short in shown.items() if name in row]
    if "val_psnr_y" in row:
        parts.append(f"val {row['val_psnr_y']:.2f} dB / {row['val_ssim_y']:.4f}")
    return "epoch {} · {}".format(row["epoch"], " · ".join(parts))
