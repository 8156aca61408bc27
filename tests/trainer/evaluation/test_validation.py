"""Validation measures what is asked for, with a perceptual distance or without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shards.read.dataset import open_dataset
from trainer.config.schema import GeneratorConfig
from trainer.evaluation.validation import upscale_patches, validate
from trainer.models import build_generator

CPU = torch.device("cpu")


def test_a_perceptual_distance_is_averaged_beside_the_rest(tiny_shards):
    split = open_dataset(tiny_shards).split("val")
    generator = build_generator(GeneratorConfig(features=4, blocks=1, growth=4), scale=4)

    def metric_for(hr):
        return lambda sr: float(np.abs(sr.astype(int) - hr).mean())

    plain = validate(generator, split, patches=5, device=CPU)
    found = validate(generator, split, patches=5, device=CPU, lpips=metric_for)
    pairs = [split[position] for position in range(5)]
    made = upscale_patches(generator, [pair.lr for pair in pairs], device=CPU)
    wanted = np.mean([metric_for(pair.hr)(sr) for pair, sr in zip(pairs, made, strict=True)])
    assert found.pop("lpips") == pytest.approx(wanted)
    assert found == plain
