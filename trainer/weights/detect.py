"""Architecture, sizes and scale of a generator, detected from the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shards.errors import UsageError
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.networks.layers import UPSAMPLING_FACTORS

StateDict = Mapping[str, Tensor]
_TITLES = {"rrdbnet": "an RRDBNet", "srresnet": "an SRResNet", "srcnn": "an SRCNN"}


def detect_architecture(
    tensors: StateDict, *, path: Path, scale: str | None
) -> tuple[GeneratorConfig, int]:
    """Return the architecture and scale of a state dict.

    Args:
        tensors: state dict.
        path: its file, for messages.
        scale: scale in its metadata, needed where the weights are ambiguous: those of SRCNN fit any scale;
            one nearest-neighbour upsampling can be x2 or x3 (without metadata x2).

    Raises:
        UsageError: the architecture is unknown, tensors are missing or surplus, or values are not finite.
    """
    if any(name.startswith("generator.") for name in tensors):
        raise UsageError(
            f"{path}: is a training checkpoint; use the weights RUN/checkpoints/final/STAGE.safetensors"
        )
    try:
        if "body.0.rdb1.conv1.weight" in tensors:
            config, factor = _detect_rrdbnet(tensors, scale)
        elif "body.0.conv1.weight" in tensors and "conv_up1.weight" in tensors:
            config, factor = _detect_srresnet(tensors)
        else:
            config, factor = _detect_srcnn(tensors, scale, path)
        expected = {name: value.shape for name, value in _build_meta_state(config, factor).items()}
    except (KeyError, ValueError, IndexError, StopIteration):
        raise UsageError(
            f"{path}: has no weights of an RRDBNet (BasicSR names), SRResNet or SRCNN;"
            " use another file"
        ) from None
    shapes = {name: value.shape for name, value in tensors.items()}
    if shapes != expected:
        misfits = sorted(
            name
            for name in expected.keys() | shapes.keys()
            if expected.get(name) != shapes.get(name)
        )
        title = _TITLES[config.architecture]
        raise UsageError(
            f"{path}: does not fit {title} at {', '.join(misfits[:5])}; use another file"
        )
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UsageError(
                f"{path}: {name} has values that are not finite and would give black images; use another file"
            )
    return config, factor


def _detect_rrdbnet(tensors: StateDict, scale: str | None) -> tuple[GeneratorConfig, int]:
    features, ups = tensors["conv_first.weight"].shape[0], _list_upsampling_outputs(tensors)
    config = GeneratorConfig(
        features=features,
        blocks=_count_blocks(tensors),
        growth=tensors["body.0.rdb1.conv1.weight"].shape[0],
        upsampler="nearest_conv" if ups[0] == features else "pixelshuffle",
        norm="batch" if "body.0.rdb1.norm1.weight" in tensors else "none",
    )
    triple = ups[0] == 9 * features or (len(ups) == 1 and scale == "3")
    return config, 3 if triple else _find_power_of_two(ups)


def _detect_srresnet(tensors: StateDict) -> tuple[GeneratorConfig, int]:
    features, ups = tensors["conv_first.weight"].shape[0], _list_upsampling_outputs(tensors)
    config = GeneratorConfig(
        architecture="srresnet",
        features=features,
        blocks=_count_blocks(tensors),
        norm="batch" if "norm_body.weight" in tensors else "none",
    )
    return config, 3 if ups[0] == 9 * features else _find_power_of_two(ups)


def _detect_srcnn(tensors: StateDict, scale: str | None, path: Path) -> tuple[GeneratorConfig, int]:
    features = tensors["conv1.weight"].shape[0]
    _ = tensors["conv3.weight"]
    if scale is None or not scale.isdecimal() or int(scale) not in UPSAMPLING_FACTORS:
        raise UsageError(
            f"{path}: is an SRCNN without a scale in its metadata; use a file from train-sr"
        )
    return GeneratorConfig(architecture="srcnn", features=features), int(scale)


def _count_blocks(tensors: StateDict) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))


def _list_upsampling_outputs(tensors: StateDict) -> list[int]:
    """Return the output channels of the upsampling convolutions."""
    names = [f"conv_up{number}.weight" for number in (1, 2, 3)]
    return [tensors[name].shape[0] for name in names if name in tensors]


def _find_power_of_two(ups: list[int]) -> int:
    return next(
        s for s, factors in UPSAMPLING_FACTORS.items() if len(factors) == len(ups) and s != 3
    )


def _build_meta_state(config: GeneratorConfig, scale: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_generator(config, scale=scale).state_dict()
