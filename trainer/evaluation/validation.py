"""Validation: the mean of PSNR and SSIM over the held-out patches."""

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

BATCH = 16
STRIP_ROWS = 4


Metrics = dict[str, float]
"""`psnr_y`, `ssim_y`, `psnr_rgb`, `ssim_rgb`: means over patches, by the protocol of `metrics`; perhaps `lpips`."""
MetricFactory = Callable[[RGB8], Callable[[RGB8], float]]
"""A truth to the perceptual distance of any picture from it: `Judge.metric_for` of LPIPS."""


def validate(
    generator: nn.Module,
    split: SplitReader,
    *,
    patches: int,
    device: torch.device,
    ranks: ProcessGroup = SINGLE_PROCESS,
    lpips: MetricFactory | None = None,
) -> Metrics:
    """Score a generator in float32 evaluation mode on the first patches of a split.

    The ranks take turns with whole batches of patches, so that each batch is computed as one process
    alone would; every rank returns the mean over all, added up in the order of the patches.
    """
    scale = split.manifest.scale
    scores = [
        (
            *dataclasses.astuple(score(each, wanted, crop=scale)),
            *([lpips(wanted)(each)] if lpips else ()),
        )
        for lr, hr in _read_batches(split, patches, ranks)
        for each, wanted in zip(upscale_patches(generator, lr, device=device), hr, strict=True)
    ]
    ours = torch.tensor(scores, dtype=torch.float64).reshape(len(scores), 5 if lpips else 4)
    shares = [share.split(BATCH) for share in ranks.all_gather(ours)]
    in_order = [
        batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None
    ]
    table = torch.cat(in_order)
    found = dataclasses.asdict(mean_scores(Scores(*row[:4]) for row in table.tolist()))
    return found | ({"lpips": table[:, 4].mean().item()} if lpips else {})


def validate_bicubic(split: SplitReader, *, patches: int) -> Metrics:
    """The baseline on the same patches."""
    scale = split.manifest.scale
    scores = (
        score(resize.upscale(each, scale=scale), wanted, crop=scale)
        for lr, hr in _read_batches(split, patches)
        for each, wanted in zip(lr, hr, strict=True)
    )
    return dataclasses.asdict(mean_scores(scores))


def make_sample_strip(generator: nn.Module, split: SplitReader, *, device: torch.device) -> RGB8:
    """A picture of a few held-out patches: bicubic, the generator's, and the truth."""
    lr, hr = next(_read_batches(split, STRIP_ROWS))
    scale = split.manifest.scale
    made = upscale_patches(generator, lr, device=device)
    rows = [
        np.concatenate((resize.upscale(low, scale=scale), sr, truth), axis=1)
        for low, sr, truth in zip(lr, made, hr, strict=True)
    ]
    return np.concatenate(rows)


@torch.inference_mode()
def upscale_patches(generator: nn.Module, lr: list[RGB8], *, device: torch.device) -> list[RGB8]:
    """LR patches to SR patches of 8 bits, rounded as every image writer rounds."""
    training = generator.training
    generator.eval()
    stacked = to_float_images(torch.from_numpy(np.stack(lr)), device)
    with full_float32():
        sr = generator(stacked).clamp(0, 1).mul(255).round().to(torch.uint8)
    generator.train(training)
    return list(sr.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _read_batches(
    split: SplitReader, patches: int, ranks: ProcessGroup = SINGLE_PROCESS
) -> Iterator[tuple[list[RGB8], list[RGB8]]]:
    count = min(patches or len(split), len(split))
    for start in range(ranks.rank * BATCH, count, ranks.world_size * BATCH):
        pairs = [split[i] for i in range(start, min(start + BATCH, count))]
        yield [pair.lr for pair in pairs], [pair.hr for pair in pairs]
