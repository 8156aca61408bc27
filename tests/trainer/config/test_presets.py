"""The presets say what their papers say: numbers against the text, networks and losses against it too."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from trainer.config.load import list_presets, load_config
from trainer.config.schema import STAGES
from trainer.config.settings import flatten
from trainer.losses.content import build_content_features, parse_layers
from trainer.models import build_discriminator, build_generator
from trainer.networks import discriminators, rrdb
from trainer.training.optim import learning_rate
from trainer.training.state import build_state
from trainer.training.step import train_step

FOLDER = Path(__file__).resolve().parents[3] / "configs"
FIVE_LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}


def holds(preset: str, stage, **wanted) -> None:
    held = flatten(load_config(preset, stage=stage))
    wanted = {name.replace("__", "."): value for name, value in wanted.items()}
    assert {name: held[name] for name in wanted} == wanted


def generator(preset: str) -> nn.Module:
    with torch.device("meta"):
        return build_generator(load_config(preset, stage="psnr").generator, scale=4)


# the paper


@pytest.mark.parametrize("stage", STAGES)
def test_usrgan_carries_every_number_of_the_paper(stage):
    config = load_config("usrgan", stage=stage)
    held = flatten(config)
    stated = {
        "loss.pixel": 1.0, "loss.content": 1.0, "loss.adversarial": 0.005,  # §4
        "optim.lr": 1e-4, "optim.schedule": "constant",  # §4: Adam, 1e-4
        "optim.discriminator_lr": 0.0,  # §4: one rate
        "epochs": 200, "batch_size": 32, "epoch_patches": 2368,  # §4, §5.1
        "generator.architecture": "rrdbnet", "generator.features": 64,  # §3.2
        "generator.blocks": 23, "generator.growth": 32,  # §3.2, figure 1
        "generator.upsampler": "pixelshuffle", "generator.norm": "batch",  # §3.2
        "discriminator.architecture": "vgg", "discriminator.features": 64,  # §3.2
        "content.features": "vgg19", "content.criterion": "l2",  # §7.1.2, eq. 2
        "adversarial.kind": "non-saturating", "adversarial.r1": 0.0,  # §7.1.3
        "ema.halflife_patches": 0.0, "optim.warmup_patches": 0,  # the paper has none
    }  # fmt: skip
    assert {name: held[name] for name in stated} == stated
    assert config.iterations_per_epoch == 74  # §5.1
    assert config.iterations_per_epoch * config.batch_size == 2_368
    assert config.total_patches == 200 * 74 * 32 == 473_600


def test_usrgans_content_layer_is_one_high_level_layer():
    (layer,) = parse_layers(load_config("usrgan", stage="gan").content.layer)
    assert layer.startswith("conv5")  # §7.1.2: "a high-level layer"


def test_usrgans_networks_are_those_of_section_3_2():
    module = generator("usrgan")
    blocks = list(module.body)
    assert len(blocks) == 23
    assert module.conv_first.out_channels == 64
    assert all(isinstance(block.rdb1.norm1, nn.BatchNorm2d) for block in blocks)
    # two pixel shuffles of 2, so 32x32 becomes 128x128
    assert [module.conv_up1.out_channels, module.conv_up2.out_channels] == [4 * 64, 4 * 64]
    settings = load_config("usrgan", stage="gan").discriminator
    judge = build_discriminator(msgspec.structs.replace(settings, features=4))  # of 64, in small
    widths = [each.out_channels for each in judge.modules() if isinstance(each, nn.Conv2d)]
    assert list(dict.fromkeys(widths)) == [4, 8, 16, 32]
    assert judge(torch.rand(1, 3, 128, 128)).shape == (1,)
    assert rrdb.SLOPE == discriminators.SLOPE == 0.2


def test_usrgans_generator_loss_is_equation_5_of_equations_1_2_and_3():
    """One step at the paper's weights against float64; small networks and features of random weights."""
    overrides = [
        "generator.features=8", "generator.blocks=1", "generator.growth=4", "generator.norm=none",
        "discriminator.features=4", "discriminator.dense=8", "batch_size=2", "epoch_patches=4",
        "content.features=random", "content.layer=conv2_1", "precision=fp32",
    ]  # fmt: skip
    config = load_config("usrgan", stage="gan", overrides=overrides)
    device = torch.device("cpu")
    state = build_state(config, stage="gan", scale=4, device=device, content_weights=None)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        sr = state.generator(lr)
        judge = state.adversary.discriminator.eval()
        phi = build_content_features(config.content, weights=None).double()
        wanted, found = phi(hr.double())[0].numpy(), phi(sr.double())[0].numpy()
        real, fake = (torch.sigmoid(judge(each).double()).numpy() for each in (hr, sr))
    eq1 = abs(sr.double().numpy() - hr.double().numpy()).mean()
    eq2 = ((found - wanted) ** 2).mean()
    eq3 = -math.fsum(math.log(each) for each in fake) / 2  # non-saturating, ADR 4
    losses = train_step(state, config, lr, hr, False).losses
    assert losses["pixel"].item() == pytest.approx(eq1, rel=1e-5)
    assert losses["content"].item() == pytest.approx(eq2, rel=1e-4)
    assert losses["adversarial"].item() == pytest.approx(eq3, rel=1e-4)
    total = 1.0 * eq1 + 1.0 * eq2 + 0.005 * eq3  # eq. 5
    assert losses["generator"].item() == pytest.approx(total, rel=1e-4)
    assert 0 < real.mean() < 1


# the systems that it is compared with


def test_esrgan_is_what_its_paper_says():
    assert sum(each.numel() for each in generator("esrgan").parameters()) == 16_697_987
    holds(
        "esrgan", "gan", loss__pixel=0.01, loss__content=1.0, loss__adversarial=0.005,
        adversarial__kind="relativistic", content__layer="conv5_4", content__activation="before",
        content__criterion="l1", batch_size=16, optim__lr=1e-4, optim__decay=0.5,
    )  # fmt: skip
    for stage, steps, base, falls in (
        ("psnr", 1_000_000, 2e-4, (200_000, 400_000, 600_000, 800_000)),
        ("gan", 400_000, 1e-4, (50_000, 100_000, 200_000, 300_000)),
    ):
        config = load_config("esrgan", stage=stage)
        assert config.total_patches == steps * 16
        for number, fall in enumerate(falls):
            for step, wanted in ((fall - 1, base / 2**number), (fall, base / 2 ** (number + 1))):
                rate = learning_rate(
                    config.optim, config.optim.lr,
                    patches_seen=step * 16, patches_total=config.total_patches,
                )  # fmt: skip
                assert rate == pytest.approx(wanted), (stage, step)


def test_realesrgan_is_what_its_repository_says():
    assert sum(each.numel() for each in generator("realesrgan").parameters()) == 16_697_987
    holds(
        "realesrgan", "gan", loss__pixel=1.0, loss__content=1.0, loss__adversarial=0.1,
        discriminator__architecture="unet", adversarial__kind="non-saturating",
        content__activation="before", content__criterion="l1", batch_size=48, optim__lr=1e-4,
    )  # fmt: skip
    config = load_config("realesrgan", stage="gan")
    assert parse_layers(config.content.layer) == FIVE_LAYERS
    assert config.total_patches == 400_000 * 48
    assert load_config("realesrgan", stage="psnr").total_patches == 1_000_000 * 48
    assert "--degrade realesrgan" in (FOLDER / "realesrgan.toml").read_text()


@pytest.mark.parametrize("preset", ["esrgan", "realesrgan", "best"])
def test_averages_are_those_of_0_999_a_step(preset):
    for stage in STAGES:
        config = load_config(preset, stage=stage)
        keep = 0.5 ** (config.batch_size / config.ema.halflife_patches)
        assert keep == pytest.approx(0.999, abs=2e-6)


def test_srresnet_and_srgan_are_what_their_paper_says():
    assert sum(each.numel() for each in generator("srresnet").parameters()) == 1_549_462
    holds("srresnet", "psnr", batch_size=16, optim__lr=1e-4, optim__schedule="constant")
    holds(
        "srresnet", "gan", loss__pixel=0.0, loss__content=0.006, loss__adversarial=0.001,
        discriminator__dense=1024,
        content__layer="conv5_4", content__activation="after", content__criterion="l2",
    )  # fmt: skip
    assert pytest.approx(0.006, abs=2e-4) == 1 / 12.75**2  # features over 12.75, squared
    config = load_config("srresnet", stage="gan")
    assert config.total_patches == 200_000 * 16
    rates = [
        learning_rate(
            config.optim, 1e-4, patches_seen=16 * step, patches_total=config.total_patches
        )
        for step in (0, 99_999, 100_000)
    ]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5])


def test_srcnn_sees_as_many_patches_as_a_stage_of_usrgan():
    srcnn, usrgan = (load_config(name, stage="psnr") for name in ("srcnn", "usrgan"))
    assert srcnn.total_patches == usrgan.total_patches
    assert sum(each.numel() for each in generator("srcnn").parameters()) == 69_251


# ours


def test_best_and_small_leave_out_batch_norm_and_average():
    for preset in ("best", "small"):
        for stage in STAGES:
            config = load_config(preset, stage=stage)
            assert config.generator.norm == "none"
            assert config.ema.halflife_patches > 0
            assert config.optim.schedule == "cosine"
        assert not list(generator(preset).buffers())
    assert sum(each.numel() for each in generator("small").parameters()) == 454_243 < 500_000


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_tells_its_commands_and_what_to_expect(preset):
    text = (FOLDER / f"{preset}.toml").read_text()
    head = text[: re.search(r"^\w", text, re.MULTILINE).start()]
    assert "prep-shards --src" in head
    assert f"--config {preset}" in head or preset == "usrgan"
    assert re.search(r"H100|GPU|CPU", head)
    number = r"(\d+|half an?|one|two|three|four|five|six|seven|eight|nine|ten)( and a half)?"
    assert re.search(rf"\b{number} (minute|hour|day)s?\b", head.replace("\n# ", " "))
    assert re.search(r"dB|decibel|expect", head)


@pytest.mark.parametrize("preset", list_presets())
def test_both_stages_of_a_preset_are_of_one_generator(preset):
    psnr, gan = (load_config(preset, stage=stage).generator for stage in STAGES)
    assert psnr == gan


@pytest.mark.parametrize("preset", list_presets())
def test_a_step_of_every_preset_moves_every_weight(preset):
    """Its networks, losses and settings work together; in small, on random features of its layers."""
    overrides = [
        "generator.features=8", "generator.blocks=1", "generator.growth=4", "discriminator.features=4",
        "discriminator.dense=8", "batch_size=2", "epoch_patches=4", "content.features=random",
        "precision=fp32", "optim.warmup_patches=0",
    ]  # fmt: skip
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    for stage in STAGES:
        config = load_config(preset, stage=stage, overrides=overrides)
        device = torch.device("cpu")
        state = build_state(config, stage=stage, scale=4, device=device, content_weights=None)
        before = {name: value.clone() for name, value in state.generator.named_parameters()}
        state.progress.patches_seen = 2  # the last step of the epoch, which is looked into
        found = train_step(state, config, lr, hr, False)
        assert all(value.isfinite() for value in found.losses.values()), stage
        assert found.applied == 1
        for name, value in state.generator.named_parameters():
            assert not torch.equal(value, before[name]), (stage, name)
        if stage == "gan":
            shares = [value for name, value in state.telemetry.items() if "share_" in name]
            assert sum(shares) == pytest.approx(1)
