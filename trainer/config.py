"""The configuration of a run: a tree of frozen structs, one per module, and what their types cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import msgspec

from trainer.adversarial import AdversarialConfig
from trainer.content import ContentConfig
from trainer.data import DataConfig
from trainer.losses import LossConfig
from trainer.models import SETTINGS, DiscriminatorConfig, GeneratorConfig
from trainer.networks.start import COLOURS
from trainer.optim import EmaConfig, OptimConfig
from trainer.telemetry import TelemetryConfig
from trainer.validate import ValidationConfig
from trainer.ways import SpeedConfig

Stage = Literal["psnr", "gan"]
STAGES: tuple[Stage, ...] = ("psnr", "gan")
PAPER = "usrgan"
Table = dict[str, Any]
_POSITIVE = (
    "epochs", "epoch_patches", "batch_size", "accumulate", "guard.patience", "generator.features", "generator.blocks",
    "generator.growth", "discriminator.features", "discriminator.dense", "optim.lr",
    "adversarial.r1_every",
)  # fmt: skip


class CheckpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often `last` is saved (beside the end of a stage and every stop), and how many are kept."""

    every_patches: int = 23_680
    keep: int = 2


class GuardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done about losses that are not finite."""

    patience: int = 3
    """Steps in a row that are left out before the run returns to its last good checkpoint."""
    rollbacks: int = 2
    """Returns in a stage before it is given up."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a training run; the defaults are the paper's numbers.

    The default of a setting that is new is what was done before there was it: runs of that time go on by it.
    """

    seed: int = 0
    epochs: int = 200
    epoch_patches: int = 2368
    """Patches in an epoch: 74 iterations of 32 (§5.1)."""
    batch_size: int = 32
    """Patches of a step, over all ranks and micro-batches."""
    accumulate: int = 1
    """Micro-batches that each rank takes one after the other, where its memory holds no more."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast to bf16 or to fp16 (CUDA alone, with a GradScaler), or fp32 throughout; "auto" is bf16 where
    the device computes in it. bf16 has float32's range, so no gradient is lost that a scaler would save."""
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()
    content: ContentConfig = ContentConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    data: DataConfig = DataConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    speed: SpeedConfig = SpeedConfig()
    guard: GuardConfig = GuardConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def iterations_per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, self.epoch_patches // self.batch_size)

    @property
    def total_patches(self) -> int:
        """Patches that a stage sees."""
        return self.epochs * self.iterations_per_epoch * self.batch_size


def flat(config: Config) -> dict[str, Any]:
    """`{"generator.features": 64, ...}`, every setting by its dotted name."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in leaves(msgspec.to_builtins(config))
    }


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: `{name: (ours, theirs)}`."""
    other = flat(theirs)
    return {
        name: (value, other[name]) for name, value in flat(ours).items() if value != other[name]
    }


def sees_micro_batches(config: Config) -> bool:
    """Whether `accumulate` changes what is computed: it does for what looks at a batch as a whole."""
    generator = config.generator
    batch_norm = "norm" in SETTINGS[generator.architecture] and generator.norm == "batch"
    return batch_norm or config.adversarial.kind == "relativistic"


def put(table: Table, name: str, value: Any) -> None:  # noqa: ANN401  any leaf of the configuration
    """Set a dotted name in nested tables."""
    *parents, last = name.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value


def faults(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """What types cannot say: the settings concerned, and the matter in the user's words."""
    for name, value in flat(config).items():
        if isinstance(value, int | float) and not value >= 0:
            yield (name,), f"{name} = {value}: must not be negative"
        if name in _POSITIVE and not value > 0:
            yield (name,), f"{name} = {value}: must be more than 0"
        if value == math.inf:
            yield (name,), f"{name} = {value}: must be finite"
    if config.seed >= 2**63:
        yield ("seed",), f"seed = {config.seed}: must be below 2^63"
    features = config.generator.features
    least = COLOURS * (2 if config.generator.architecture == "srcnn" else 1)
    if features < least:
        yield (
            ("generator.features",),
            f"generator.features = {features}: must be at least {least}, one for each colour"
            + " in half as many" * (least > COLOURS),
        )
    if config.batch_size > config.epoch_patches:
        yield (
            ("batch_size", "epoch_patches"),
            f"batch_size {config.batch_size} is more than epoch_patches {config.epoch_patches};"
            " an epoch needs one step",
        )
    if config.batch_size % config.accumulate:
        yield (
            ("accumulate", "batch_size"),
            f"batch_size {config.batch_size} is no multiple of accumulate {config.accumulate};"
            " the micro-batches of a step are equally large",
        )
    if any(not 0 < part < 1 for part in config.optim.milestones):
        yield (
            ("optim.milestones",),
            (
                f"optim.milestones = {list(config.optim.milestones)}: must be parts of the stage, between 0 and 1"
            ),
        )
    if bool(config.optim.milestones) != (config.optim.schedule == "multistep"):
        yield (
            ("optim.milestones", "optim.schedule"),
            (
                f"optim.schedule = {config.optim.schedule}: optim.milestones belong to multistep, and it to them"
            ),
        )
    for name, beta in (("optim.beta1", config.optim.beta1), ("optim.beta2", config.optim.beta2)):
        if not beta < 1:
            yield (name,), f"{name} = {beta}: must be below 1"


def leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


assert get_args(Stage) == STAGES
