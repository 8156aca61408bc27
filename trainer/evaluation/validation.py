"""Validation: mean PSNR and SSIM over held-out patches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from shards.format.png import RGB8
from shards.images import resize
from shards.read.split import SplitReader
from trainer.data.batches import to_float_images
from trainer.device import full_float32
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.evaluation.metrics import Scores, mean_scores, score

BATCH_SIZE = 16
"""Patches in one batch; part of the result, because a batch is computed as a whole."""
SAMPLE_ROWS = 4
"""Patches in a sample image."""

Metrics = dict[str, float]
"""Means over patches: `psnr_y`, `ssim_y`, `psnr_rgb`, `ssim_rgb`, and `lpips` if requested."""
MetricFactory = Callable[[RGB8], Callable[[RGB8], float]]
"""Function from HR to a function from SR to their distance: `PerceptualMetric.metric_for`."""


def validate(
    generator: nn.Module,
    split: SplitReader,
    *,
    patches: int,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    lpips: MetricFactory | None = None,
) -> Metrics:
    """Return the mean scores of a generator in float32 evaluation mode on the first patches of a split.

    Ranks take whole batches in turn and every rank adds up all scores in the order of the patches.
    The result therefore does not depend on the number of ranks.

    Args:
        generator: network from RGB in [0, 1] to RGB in [0, 1]; its mode is restored.
        split: held-out patches.
        patches: number of patches; 0 takes all.
        device: device of the generator.
        group: processes of the job.
        lpips: LPIPS as one more score.
    """
    scale = split.manifest.scale
    scores = [
        (
            *dataclasses.astuple(score(sr, hr, crop=scale)),
            *([lpips(hr)(sr)] if lpips else ()),
        )
        for lr_batch, hr_batch in _read_batches(split, patches, group)
        for sr, hr in zip(
            upscale_patches(generator, lr_batch, device=device), hr_batch, strict=True
        )
    ]
    own = torch.tensor(scores, dtype=torch.float64).reshape(len(scores), 5 if lpips else 4)
    per_rank = [gathered.split(BATCH_SIZE) for gathered in group.all_gather(own)]
    in_order = [
        batch for turn in itertools.zip_longest(*per_rank) for batch in turn if batch is not None
    ]
    table = torch.cat(in_order)
    means = dataclasses.asdict(mean_scores(Scores(*row[:4]) for row in table.tolist()))
    return means | ({"lpips": table[:, 4].mean().item()} if lpips else {})


def validate_bicubic(split: SplitReader, *, patches: int) -> Metrics:
    """Return the mean scores of bicubic interpolation on the same patches."""
    scale = split.manifest.scale
    scores = (
        score(resize.upscale(lr, scale=scale), hr, crop=scale)
        for lr_batch, hr_batch in _read_batches(split, patches)
        for lr, hr in zip(lr_batch, hr_batch, strict=True)
    )
    return dataclasses.asdict(mean_scores(scores))


def render_samples(generator: nn.Module, split: SplitReader, *, device: torch.device) -> RGB8:
    """Return an image of the first held-out patches, one a row: bicubic, the generator's output, HR."""
    lr_batch, hr_batch = next(_read_batches(split, SAMPLE_ROWS))
    scale = split.manifest.scale
    sr_batch = upscale_patches(generator, lr_batch, device=device)
    rows = [
        np.concatenate((resize.upscale(lr, scale=scale), sr, hr), axis=1)
        for lr, sr, hr in zip(lr_batch, sr_batch, hr_batch, strict=True)
    ]
    return np.concatenate(rows)


@torch.inference_mode()
def upscale_patches(generator: nn.Module, lr: list[RGB8], *, device: torch.device) -> list[RGB8]:
    """Return the SR patches [h*scale w*scale 3] of LR patches [h w 3] of one size, rounded to 8 bits.

    The network runs in full float32 and evaluation mode; its mode is restored.
    """
    training = generator.training
    generator.eval()
    stacked = to_float_images(torch.from_numpy(np.stack(lr)), device)
    with full_float32():
        sr = generator(stacked).clamp(0, 1).mul(255).round().to(torch.uint8)
    generator.train(training)
    return list(sr.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _read_batches(
    split: SplitReader, patches: int, group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[tuple[list[RGB8], list[RGB8]]]:
    """Yield the LR and HR patches of this rank's batches; `patches` 0 takes all."""
    count = min(patches or len(split), len(split))
    for start in range(group.rank * BATCH_SIZE, count, group.world_size * BATCH_SIZE):
        pairs = [split[i] for i in range(start, min(start + BATCH_SIZE, count))]
        yield [pair.lr for pair in pairs], [pair.hr for pair in pairs]
