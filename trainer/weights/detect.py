"""What a state dict is: architecture, sizes and scale, from its names and shapes."""

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
TITLES = {"rrdbnet": "an RRDBNet", "srresnet": "an SRResNet", "srcnn": "an SRCNN"}


def detect_architecture(
    tensors: StateDict, *, path: Path, scale: str | None
) -> tuple[GeneratorConfig, int]:
    """The architecture and scale that a state dict belongs to.

    Args:
        tensors: the state dict.
        path: where it is from, for messages.
        scale: what its metadata says. Needed where the weights leave it open: SRCNN's fit any
            scale, and one enlargement by a nearest-neighbour layer can be x2 or x3 (then x2 is taken).

    Raises:
        UsageError: it is no generator that is known here, not a whole one, or one whose training went wrong.
    """
    if any(name.startswith("generator.") for name in tensors):
        raise UsageError(
            f"{path}: is what a run goes on from; use its weights, RUN/checkpoints/final/STAGE.safetensors"
        )
    try:
        if "body.0.rdb1.conv1.weight" in tensors:
            config, factor = _rrdbnet(tensors, scale)
        elif "body.0.conv1.weight" in tensors and "conv_up1.weight" in tensors:
            config, factor = _srresnet(tensors)
        else:
            config, factor = _srcnn(tensors, scale, path)
        expected = {name: value.shape for name, value in _skeleton(config, factor).items()}
    except (KeyError, ValueError, IndexError, StopIteration):
        raise UsageError(
            f"{path}: holds no RRDBNet weights with BasicSR's names, no SRResNet's and no SRCNN's;"
            " use another file"
        ) from None
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        odd = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        title = TITLES[config.architecture]
        raise UsageError(f"{path}: does not fit {title} at {', '.join(odd[:5])}; use another file")
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UsageError(
                f"{path}: {name} holds values that are not finite, which upscale to black; use another file"
            )
    return config, factor


def _rrdbnet(tensors: StateDict, scale: str | None) -> tuple[GeneratorConfig, int]:
    features, ups = tensors["conv_first.weight"].shape[0], _upsampling(tensors)
    config = GeneratorConfig(
        features=features,
        blocks=_blocks(tensors),
        growth=tensors["body.0.rdb1.conv1.weight"].shape[0],
        upsampler="nearest_conv" if ups[0] == features else "pixelshuffle",
        norm="batch" if "body.0.rdb1.norm1.weight" in tensors else "none",
    )
    triple = ups[0] == 9 * features or (len(ups) == 1 and scale == "3")
    return config, 3 if triple else _power_of_two(ups)


def _srresnet(tensors: StateDict) -> tuple[GeneratorConfig, int]:
    features, ups = tensors["conv_first.weight"].shape[0], _upsampling(tensors)
    config = GeneratorConfig(
        architecture="srresnet",
        features=features,
        blocks=_blocks(tensors),
        norm="batch" if "norm_body.weight" in tensors else "none",
    )
    return config, 3 if ups[0] == 9 * features else _power_of_two(ups)


def _srcnn(tensors: StateDict, scale: str | None, path: Path) -> tuple[GeneratorConfig, int]:
    features = tensors["conv1.weight"].shape[0]
    _ = tensors["conv3.weight"]
    if scale is None or not scale.isdecimal() or int(scale) not in UPSAMPLING_FACTORS:
        raise UsageError(
            f"{path}: is an SRCNN whose metadata does not say its scale; use a file that train-sr wrote"
        )
    return GeneratorConfig(architecture="srcnn", features=features), int(scale)


def _blocks(tensors: StateDict) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))


def _upsampling(tensors: StateDict) -> list[int]:
    """Outputs of the upsampling convolutions."""
    names = [f"conv_up{number}.weight" for number in (1, 2, 3)]
    return [tensors[name].shape[0] for name in names if name in tensors]


def _power_of_two(ups: list[int]) -> int:
    return next(
        s for s, factors in UPSAMPLING_FACTORS.items() if len(factors) == len(ups) and s != 3
    )


def _skeleton(config: GeneratorConfig, scale: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_generator(config, scale=scale).state_dict()
