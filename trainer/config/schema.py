"""Every setting of a run as a tree of frozen structs: type, default, bounds, description and policy.

A default equals the paper's value. A new setting must default to the previous behaviour, so that
old runs resume unchanged.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from trainer.config.policy import HARMLESS, Condition, Policy

Stage = Literal["psnr", "gan"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Architecture = Literal["rrdbnet", "srresnet", "srcnn"]
Upsampler = Literal["pixelshuffle", "nearest_conv"]
Norm = Literal["batch", "none"]
DiscriminatorArchitecture = Literal["vgg", "unet", "patch"]
AdversarialKind = Literal["non-saturating", "saturating", "relativistic", "hinge", "least-squares"]
BestBy = Literal["auto", "psnr_y", "ssim_y", "both", "lpips", "final"]
Cache = Literal["none", "ram", "device"]

USED_SETTINGS: dict[Architecture, tuple[str, ...]] = {
    "rrdbnet": ("features", "blocks", "growth", "upsampler", "norm"),
    "srresnet": ("features", "blocks", "norm"),
    "srcnn": ("features",),
}
"""Settings of `[generator]` that each architecture uses; the others have no effect on it."""
SMALLEST_PATCH: dict[DiscriminatorArchitecture, int] = {"vgg": 32, "unet": 8, "patch": 24}
"""Smallest patch side of each discriminator, in pixels: its strided convolutions need that much."""
AUTO = "auto"
"""Value of a setting that the device decides."""


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables: immutable, without unknown keys."""


class GeneratorConfig(Frozen, frozen=True):
    """The generator, or one of the networks that it is compared with."""

    architecture: Annotated[
        Architecture, Meta(description="Network of the generator."), Policy(paper="§3.2")
    ] = "rrdbnet"
    features: Annotated[
        int,
        Meta(ge=3, le=4096, description="Channels of the trunk; of SRCNN's first layer, whose second has half as many."),
        Policy(paper="§3.2"),
    ] = 64  # fmt: skip
    blocks: Annotated[
        int,
        Meta(gt=0, le=1024, description="Residual-in-residual dense blocks (rrdbnet) or residual blocks (srresnet)."),
        Policy(paper="§3.2"),
    ] = 23  # fmt: skip
    growth: Annotated[
        int,
        Meta(gt=0, le=4096, description="Channels that each convolution of a dense block adds (rrdbnet)."),
        Policy(unsaid="does not say"),
    ] = 32  # fmt: skip
    upsampler: Annotated[
        Upsampler,
        Meta(description="Sub-pixel convolution, or ESRGAN's nearest-neighbour enlargement with a convolution (rrdbnet)."),
        Policy(paper="§3.2"),
    ] = "pixelshuffle"  # fmt: skip
    norm: Annotated[
        Norm,
        Meta(description="Normalisation after the convolutions of a block (rrdbnet, srresnet)."),
        Policy(paper="§3.2"),
    ] = "batch"


class DiscriminatorConfig(Frozen, frozen=True):
    """The discriminator of stage gan."""

    architecture: Annotated[
        DiscriminatorArchitecture,
        Meta(description="VGG style with one logit per patch, U-Net with one per pixel, or PatchGAN."),
        Policy(paper="§3.2"),
    ] = "vgg"  # fmt: skip
    features: Annotated[
        int,
        Meta(gt=0, le=4096, description="Channels of the first layer; 64 gives 64, 128, 256 and 512 (vgg)."),
        Policy(paper="§3.2"),
    ] = 64  # fmt: skip
    dense: Annotated[
        int,
        Meta(gt=0, le=2**20, description="Width of the hidden dense layer (vgg)."),
        Policy(unsaid="does not say"),
    ] = 100


class LossConfig(Frozen, frozen=True):
    """Weights of the generator's loss in stage gan; stage psnr has the pixel loss alone."""

    pixel: Annotated[
        float, Meta(ge=0, description="Weight of the L1 loss."), Policy(paper="eq. 1, 5")
    ] = 1.0
    content: Annotated[
        float, Meta(ge=0, description="Weight of the content loss."), Policy(paper="eq. 2, 5")
    ] = 1.0
    adversarial: Annotated[
        float, Meta(ge=0, description="Weight of the adversarial loss."), Policy(paper="eq. 5")
    ] = 0.005


class ContentConfig(Frozen, frozen=True):
    """The content loss: a distance between feature maps of VGG-19."""

    features: Annotated[
        Literal["vgg19", "random"],
        Meta(description="Weights of VGG-19: torchvision's, or seeded random ones where the file is not at hand."),
        Policy(paper="eq. 2"),
    ] = "vgg19"  # fmt: skip
    layer: Annotated[
        str,
        Meta(description='Layer, or a weighted sum of layers such as "0.1*conv1_2 + conv5_4".'),
        Policy(unsaid="a high-level layer"),
    ] = "conv5_4"
    activation: Annotated[
        Literal["before", "after"],
        Meta(description="Feature maps before or after the ReLU of each layer."),
        Policy(unsaid="does not say"),
    ] = "before"
    criterion: Annotated[
        Literal["l1", "l2"],
        Meta(description="Mean absolute (l1) or mean squared (l2) difference of the feature maps."),
        Policy(paper="eq. 2"),
    ] = "l2"
    input_range: Annotated[
        Literal["imagenet", "unit"],
        Meta(description="Input of VGG-19: normalised as for ImageNet, or values in [0, 1]."),
        Policy(unsaid="does not say"),
    ] = "imagenet"


class AdversarialConfig(Frozen, frozen=True):
    """The adversarial loss of stage gan."""

    kind: Annotated[
        AdversarialKind,
        Meta(description='Form of the loss; "saturating" is eq. 3 as printed, "relativistic" is ESRGAN\'s average form.'),
        Policy(paper="eq. 3, 4"),
    ] = "non-saturating"  # fmt: skip
    r1: Annotated[
        float,
        Meta(ge=0, description="Weight of the gradient penalty on real patches (arXiv:1801.04406); 0 switches it off."),
    ] = 0.0  # fmt: skip
    r1_every: Annotated[
        int,
        Meta(gt=0, le=2**31, description="Steps from one penalty to the next; each counts that many times (arXiv:1912.04958)."),
        Policy(unsaid="does not say"),
    ] = 16  # fmt: skip


class OptimConfig(Frozen, frozen=True):
    """Adam for both networks."""

    lr: Annotated[
        float,
        Meta(gt=0, description="Learning rate of the generator; also of the discriminator unless `discriminator_lr` is set."),
        Policy(paper="§4"),
    ] = 1e-4  # fmt: skip
    discriminator_lr: Annotated[
        float, Meta(ge=0, description="Learning rate of the discriminator; 0 takes `lr`.")
    ] = 0.0
    beta1: Annotated[
        float,
        Meta(ge=0, lt=1, description="Decay of Adam's first moment."),
        Policy(unsaid="does not say"),
    ] = 0.9
    beta2: Annotated[
        float,
        Meta(ge=0, lt=1, description="Decay of Adam's second moment."),
        Policy(unsaid="does not say"),
    ] = 0.999
    schedule: Annotated[
        Literal["constant", "cosine", "multistep"],
        Meta(description='Learning rate over the stage: "cosine" falls to 0, "multistep" falls by `decay` at each of `milestones`.'),
        Policy(paper="§4"),
    ] = "constant"  # fmt: skip
    milestones: Annotated[
        tuple[float, ...],
        Meta(description="Fractions of the stage at which a multistep rate falls, such as [0.25, 0.5]."),
    ] = ()  # fmt: skip
    decay: Annotated[
        float, Meta(ge=0, description="Factor of a multistep rate at each milestone.")
    ] = 0.5
    warmup_patches: Annotated[
        int, Meta(ge=0, le=2**62, description="Patches over which the rate rises linearly from 0.")
    ] = 0


class EmaConfig(Frozen, frozen=True):
    """Exponential moving average (EMA) of the generator's weights."""

    halflife_patches: Annotated[
        float,
        Meta(ge=0, description="Patches after which an old weight counts half; 0 switches the EMA off."),
    ] = 0.0  # fmt: skip


class DataConfig(Frozen, frozen=True):
    """How patches reach the step; only `augment` changes which patches come."""

    workers: Annotated[
        int,
        Meta(ge=0, le=1024, description="Decoding threads; 0 reads and decodes in the thread of the step."),
        Policy(may_change=True, per_rank=True),
    ] = 2  # fmt: skip
    augment: Annotated[
        bool,
        Meta(description="Random flips and 90° turns, the same for LR and HR."),
        Policy(paper="§3.1"),
    ] = True
    cache: Annotated[
        Cache,
        Meta(description="Place where decoded patches stay after their first use: memory of the process, or of the device."),
        Policy(may_change=True, per_rank=True),
    ] = "none"  # fmt: skip
    cache_gib: Annotated[
        float,
        Meta(ge=0, description="Largest size of `cache`, in GiB."),
        Policy(may_change=True, per_rank=True),
    ] = 8.0
    cache_dir: Annotated[
        str,
        Meta(description='Folder that keeps whole shards of a URL for later runs; "" keeps none.'),
        Policy(may_change=True, per_rank=True),
    ] = ""


class ValidationConfig(Frozen, frozen=True):
    """Validation on held-out patches. They are shuffled, so that any number of them is a fair sample."""

    every_epochs: Annotated[
        int,
        Meta(ge=0, le=2**31, description="Epochs from one validation to the next; 0 never validates and keeps no best weights."),
    ] = 1  # fmt: skip
    patches: Annotated[
        int, Meta(ge=0, le=2**31, description="Number of held-out patches; 0 takes all.")
    ] = 512
    best_by: Annotated[
        BestBy,
        Meta(
            description="Metric that chooses the weights a stage delivers. auto: psnr takes the best PSNR-Y, gan the lowest"
            " LPIPS or, without --lpips, its final weights. both: the paper's rule, PSNR and SSIM must both improve."
        ),
    ] = "auto"
    psnr_drop: Annotated[
        float,
        Meta(ge=0, description="Largest loss of PSNR-Y, in dB below the stage's best, at which the lowest LPIPS still counts."),
    ] = 3.0  # fmt: skip


class CheckpointConfig(Frozen, frozen=True):
    """Checkpoints to resume from. The end of a stage and every stop save one, too."""

    every_patches: Annotated[
        int, Meta(ge=0, le=2**62, description="Patches from one checkpoint to the next.")
    ] = 23_680
    keep: Annotated[int, Meta(ge=0, le=2**31, description="Checkpoints kept of each stage.")] = 2


class SpeedConfig(Frozen, frozen=True):
    """How a step is made fast; it computes the same up to rounding. "auto" decides by the device."""

    dense: Annotated[
        Literal["auto", "plain", "fused"],
        Meta(description="Dense blocks of the generator: torch's operations, or Triton kernels (NVIDIA GPUs from Ampere on)."),
    ] = "auto"  # fmt: skip
    compile: Annotated[
        Literal["auto", "none", "blocks"], Meta(description="torch.compile of each RRDB.")
    ] = "auto"
    graph: Annotated[
        Literal["auto", "none", "step"],
        Meta(description="The whole step as one CUDA graph; for one GPU."),
    ] = "auto"
    content: Annotated[
        Literal["auto", "fp32", "bf16"], Meta(description="Stored precision of VGG-19's frozen weights.")
    ] = "auto"  # fmt: skip
    allocator: Annotated[
        Literal["auto", "system", "keep"],
        Meta(
            description="Freed memory returns to the system, or stays with the process (Linux CPU)."
        ),
    ] = "auto"
    convolutions: Annotated[
        Literal["auto", "first", "fastest"],
        Meta(description="cuDNN's first guess, which repeats bit for bit, or the fastest algorithm of a trial of each shape."),
    ] = "auto"  # fmt: skip


class GuardConfig(Frozen, frozen=True):
    """Protection against losses that are not finite."""

    patience: Annotated[
        int, Meta(gt=0, le=2**31, description="Skipped steps in a row before the run rolls back.")
    ] = 3
    rollbacks: Annotated[
        int, Meta(ge=0, le=2**31, description="Rollbacks in a stage before the run ends.")
    ] = 2


class TelemetryConfig(Frozen, frozen=True):
    """Diagnostics of a step: gradient shares, gradient norms, singular values."""

    every_patches: Annotated[
        int,
        Meta(ge=0, le=2**62, description="Patches from one diagnosed step to the next; 0 takes the last step of each epoch."),
    ] = 0  # fmt: skip


class Config(Frozen, frozen=True):
    """One stage of a run; the defaults are the paper's values."""

    seed: Annotated[
        int,
        Meta(ge=0, le=2**63 - 1, description="Random seed of initial weights, patch order and augmentation."),
        Policy(recipe=False),
    ] = 0  # fmt: skip
    epochs: Annotated[
        int,
        Meta(gt=0, le=2**31, description="Epochs of the stage."),
        Policy(
            may_change=Condition("if optim.schedule is constant", has_constant_rate),
            paper="§5.1",
        ),
    ] = 200
    epoch_patches: Annotated[
        int,
        Meta(gt=0, le=2**40, description="Patches of an epoch; 2368 are 74 steps of 32."),
        Policy(paper="§5.1"),
    ] = 2368
    batch_size: Annotated[
        int,
        Meta(gt=0, le=2**31, description="Patches of a step, over all ranks and micro-batches."),
        Policy(paper="§5.1"),
    ] = 32
    accumulate: Annotated[
        int,
        Meta(gt=0, le=2**31, description="Micro-batches that each rank computes one after the other, where memory is short."),
        Policy(
            may_change=Condition(
                "if the networks compute no batch statistics",
                computes_patches_apart,
            ),
            unsaid="does not say",
        ),
    ] = 1  # fmt: skip
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Meta(description="Autocast to bf16 or fp16 (GPU only, with a GradScaler), or none; auto is bf16 where the device has it."),
        Policy(paper="§4"),
    ] = "auto"  # fmt: skip
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: Annotated[DiscriminatorConfig, Policy(gan_only=True)] = DiscriminatorConfig()
    loss: Annotated[LossConfig, Policy(gan_only=True)] = LossConfig()
    content: Annotated[ContentConfig, Policy(gan_only=True)] = ContentConfig()
    adversarial: Annotated[AdversarialConfig, Policy(gan_only=True)] = AdversarialConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    data: Annotated[DataConfig, Policy(recipe=False)] = DataConfig()
    validation: Annotated[ValidationConfig, HARMLESS] = ValidationConfig()
    checkpoint: Annotated[CheckpointConfig, HARMLESS] = CheckpointConfig()
    speed: Annotated[SpeedConfig, Policy(may_change=True, per_rank=True, recipe=False)] = (
        SpeedConfig()
    )
    guard: Annotated[GuardConfig, HARMLESS] = GuardConfig()
    telemetry: Annotated[TelemetryConfig, HARMLESS] = TelemetryConfig()

    @property
    def iterations_per_epoch(self) -> int:
        """Steps of an epoch."""
        return max(1, self.epoch_patches // self.batch_size)

    @property
    def total_patches(self) -> int:
        """Patches of the stage."""
        return self.epochs * self.iterations_per_epoch * self.batch_size


def has_batch_statistics(config: Config) -> bool:
    """Return whether a step depends on the batch as a whole, so that `accumulate` changes what it computes."""
    generator = config.generator
    batch_norm = "norm" in USED_SETTINGS[generator.architecture] and generator.norm == "batch"
    return batch_norm or config.adversarial.kind == "relativistic"


def computes_patches_apart(config: Config) -> bool:
    """Return whether micro-batches compute the same as the whole batch."""
    return not has_batch_statistics(config)


def has_constant_rate(config: Config) -> bool:
    """Return whether the learning rate is independent of the number of epochs."""
    return config.optim.schedule == "constant"
