"""Settings of speed change how a step is made, and nothing of what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch.nn import functional as F

from shards.errors import ConfigError
from tests.trainer.test_resume import logged, train
from trainer.bench.train import batch_of
from trainer.config.load import load_config
from trainer.config.schema import SpeedConfig
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.losses.content import build_content_features
from trainer.networks import fused
from trainer.networks.convolution import Conv3x3
from trainer.networks.rrdb import DenseBlock, RRDBNet
from trainer.speed import build_step, held_up_by, missing_kernels, prepare, resolve
from trainer.state import build_state
from trainer.ways import PLAIN

CPU = torch.device("cpu")
SMALL = ["generator.features=12", "generator.blocks=1", "discriminator.features=4"]
SMALL += ["content.layer=conv2_2", "ema.halflife_patches=0", "optim.lr=2e-4"]
WIDE = [*SMALL, "generator.features=32", "generator.growth=16", "discriminator.features=16"]
"""Channels enough for Winograd's algorithm."""
BRANCHES = 8.0


def losses(
    speed: SpeedConfig,
    *,
    stage: str,
    bf16: bool,
    norm: str = "none",
    steps: int = 20,
    small: Sequence[str] = SMALL,
):
    precision = f"precision={'bf16' if bf16 else 'fp32'}"
    config = load_config(
        "tiny", stage=stage, overrides=[*small, f"generator.norm={norm}", precision]
    )
    config = msgspec.structs.replace(config, speed=speed)
    state = build_state(config, stage=stage, scale=4, device=CPU, content_weights=None)
    state.generator.train()
    with (
        torch.no_grad()
    ):  # a fresh network hardly has any branches, and what they do would not show
        for name, parameter in state.generator.named_parameters():
            if name.startswith(("body.", "conv_body.")) and name.endswith("weight"):
                parameter.mul_(BRANCHES)
    decided = resolve(config, device=CPU, bf16=bf16)
    prepare(state, decided)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=decided)
    lr, hr = (each[..., : each.shape[-1] // 2, : each.shape[-1] // 2] for each in batch_of(2, CPU))
    rows = [step(lr, hr, False).losses for _ in range(steps)]
    found = [{name: value.item() for name, value in row.items()} for row in rows]
    return found, {name: value.clone() for name, value in state.generator.state_dict().items()}


def with_(**settings: str) -> SpeedConfig:
    return msgspec.structs.replace(PLAIN, **settings)


@pytest.mark.parametrize(
    ("settings", "norm"),
    [({"dense": "push"}, "none"), ({"dense": "push"}, "batch"), ({"dense": "hybrid"}, "none")],
)
@pytest.mark.parametrize("stage", ["psnr", pytest.param("gan", marks=pytest.mark.slow)])
def test_twenty_steps_of_each_dense_form_lose_as_the_plain_one(settings, norm, stage):
    wanted, _ = losses(PLAIN, stage=stage, bf16=False, norm=norm)
    found, _ = losses(with_(**settings), stage=stage, bf16=False, norm=norm)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours == pytest.approx(plain, rel=1e-5 if norm == "none" else 5e-3)
    assert wanted[-1]["pixel"] < wanted[0]["pixel"]


@pytest.mark.parametrize("form", ["plain", "push", "hybrid"])
def test_twenty_steps_in_bf16_lose_as_in_float32_within_noise(form):
    wanted, _ = losses(PLAIN, stage="psnr", bf16=False)
    found, _ = losses(with_(dense=form), stage="psnr", bf16=True)
    pairs = [(ours["pixel"], plain["pixel"]) for ours, plain in zip(found, wanted, strict=True)]
    assert max(abs(ours - plain) / plain for ours, plain in pairs) < 0.03


@pytest.mark.skipif(bool(missing_kernels()), reason=missing_kernels())
@pytest.mark.parametrize(("stage", "norm"), [("psnr", "none"), ("psnr", "batch"), ("gan", "none")])
def test_twenty_steps_by_winograds_algorithm_lose_as_in_float32_within_noise(stage, norm):
    given = {"stage": stage, "norm": norm, "small": WIDE}
    wanted, _ = losses(PLAIN, bf16=False, **given)
    direct, _ = losses(PLAIN, bf16=True, **given)
    found, _ = losses(with_(convolutions="winograd"), bf16=True, **given)
    assert found != direct

    def apart(rows, loss):
        return max(abs(row[loss] / true[loss] - 1) for row, true in zip(rows, wanted, strict=True))

    for loss in ("pixel", *(("content", "discriminator") if stage == "gan" else ())):
        assert apart(found, loss) < max(2 * apart(direct, loss), 0.03)
    assert wanted[-1]["pixel"] < wanted[0]["pixel"]


@pytest.mark.parametrize("settings", [{"content": "bf16"}, {"allocator": "keep"}])
def test_kept_weights_and_kept_memory_change_no_bit(settings):
    wanted = losses(PLAIN, stage="gan", bf16=True, steps=3)
    found = losses(with_(**settings), stage="gan", bf16=True, steps=3)
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


@pytest.mark.parametrize("winograd", [False, True])
def test_the_content_gradient_in_bf16_points_where_that_in_float32_does(winograd):
    if winograd and missing_kernels():
        pytest.skip(missing_kernels())
    config = load_config("tiny", stage="gan", overrides=["content.layer=conv3_4 + conv5_4"])
    network = build_content_features(config.content, weights=None)
    lr, hr = (each[..., : each.shape[-1] // 2, : each.shape[-1] // 2] for each in batch_of(1, CPU))
    for module in network.modules():
        if isinstance(module, Conv3x3):
            module.winograd = winograd
    gradients = []
    for bf16 in (False, True):
        sr = F.interpolate(lr, scale_factor=4.0, mode="bicubic").requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            pairs = zip(network(sr), network(hr), strict=True)
        losses = [(ours.float() - theirs.float()).square().mean() for ours, theirs in pairs]
        found = [torch.autograd.grad(loss, sr, retain_graph=True)[0] for loss in losses]
        gradients.append(torch.stack(found).flatten(1))
    conv3_4, conv5_4 = F.cosine_similarity(*gradients, dim=1)
    assert conv3_4 > (0.98 if winograd else 0.985)
    assert conv5_4 > (0.94 if winograd else 0.95)  # docs/internals/log.md says why not .999


def test_auto_is_decided_for_the_device_and_nothing_else_is():
    config = load_config("usrgan", stage="gan")
    decided = resolve(config, device=CPU, bf16=True)
    assert "auto" not in msgspec.structs.asdict(decided).values()
    assert decided.content == "bf16"
    assert resolve(config, device=CPU, bf16=False).content == "fp32"
    asked = msgspec.structs.replace(config, speed=with_(dense="push"))
    assert resolve(asked, device=CPU, bf16=True) == with_(dense="push")


def test_winograds_algorithm_is_for_bf16_on_a_cpu_that_gains_by_it(monkeypatch):
    config = load_config("usrgan", stage="gan")

    def chosen(speed: SpeedConfig = config.speed, **given) -> str:
        asked = msgspec.structs.replace(config, speed=speed)
        return resolve(asked, **({"device": CPU, "bf16": True} | given)).convolutions

    monkeypatch.setattr("trainer.speed.missing_kernels", str)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert chosen() == "winograd"
    assert chosen(bf16=False) == chosen(device=torch.device("cuda")) == "fastest"
    assert chosen(SpeedConfig(compile="blocks")) == "fastest"
    with pytest.raises(ConfigError, match=r"speed.convolutions: .* torch.compile cannot see into"):
        chosen(SpeedConfig(compile="blocks", convolutions="winograd"))
    assert not held_up_by(config, device=CPU, bf16=True)
    for others in ({"avx512_bf16": True, "amx_bf16": True}, {"avx2": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", others.copy)
        assert chosen() == "fastest"
        assert not held_up_by(config, device=CPU, bf16=True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("trainer.speed.missing_kernels", lambda: "there is no C compiler")
    assert chosen() == "fastest"
    assert held_up_by(config, device=CPU, bf16=True) == "there is no C compiler"
    assert not held_up_by(config, device=CPU, bf16=False)
    with pytest.raises(
        ConfigError, match=r"cannot be Winograd's here: there is no C compiler; use"
    ):
        chosen(SpeedConfig(convolutions="winograd"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["speed.graph=step"], "speed.graph: a CUDA graph needs a CUDA device"),
        (["speed.dense=hybrid"], "speed.dense: hybrid has no backward pass through norm = 'batch'"),
        (["speed.content=bf16", "precision=fp32"], "speed.content: bf16 weights need bf16 steps"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, words):
    config = load_config("usrgan", stage="gan", overrides=overrides)
    with pytest.raises(ConfigError, match=words):
        resolve(config, device=CPU, bf16=config.precision != "fp32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dynamo's and Inductor's own, about their own code
@pytest.mark.parametrize("form", ["plain", "push", "hybrid"])
def test_compiled_blocks_lose_as_blocks_that_are_not_in_one_graph_each(form):
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    wanted, _ = losses(with_(dense=form), stage="psnr", bf16=True, steps=4)
    found, _ = losses(with_(dense=form, compile="blocks"), stage="psnr", bf16=True, steps=4)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours["pixel"] == pytest.approx(plain["pixel"], rel=5e-3)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_graph_is_refused_to_several_processes_and_to_fp16():
    cuda = torch.device("cuda")
    config = load_config("usrgan", stage="gan", overrides=["speed.graph=step"])
    assert resolve(config, device=cuda, bf16=True).graph == "step"
    with pytest.raises(ConfigError, match=r"speed.graph: a graph holds the step of one process"):
        resolve(config, device=cuda, bf16=True, world=2)
    half = load_config("usrgan", stage="gan", overrides=["speed.graph=step", "precision=fp16"])
    with pytest.raises(ConfigError, match=r"speed.graph: the scale of fp16's gradients"):
        resolve(half, device=cuda, bf16=False)


def test_a_run_goes_on_in_another_dense_form(tiny_shards, tmp_path):
    constant = ["--stage", "psnr", "--set", "optim.schedule=constant"]
    train(tiny_shards, tmp_path / "run", *constant, "--set", "epochs=1")
    train(
        tiny_shards, tmp_path / "run", *constant, "--set", "epochs=2", "--set", "speed.dense=hybrid"
    )
    assert [row["epoch"] for row in logged(tmp_path / "run")] == [1, 2]


def test_a_step_that_cannot_be_is_refused_before_anything_is_written(tiny_shards, tmp_path):
    ended = train(tiny_shards, tmp_path / "run", "--set", "speed.graph=step", code=2)
    assert "speed.graph: a CUDA graph needs a CUDA device" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_fused_blocks_are_for_half_precision_on_a_gpu_that_can_have_them(monkeypatch):
    cuda = torch.device("cuda")
    config = load_config("usrgan", stage="psnr")
    plain = load_config("usrgan", stage="psnr", overrides=["generator.norm=none"])

    def chosen(config=config, speed=config.speed, device=cuda, bf16=True, **more) -> str:
        asked = msgspec.structs.replace(config, speed=speed)
        return resolve(asked, device=device, bf16=bf16, **more).dense

    monkeypatch.setattr("trainer.networks.fused.missing", lambda _: "")
    assert chosen() == chosen(plain, world=2) == "fused"
    assert chosen(device=CPU) == chosen(bf16=False) == chosen(world=2) == "plain"
    assert chosen(speed=SpeedConfig(compile="blocks")) == "plain"
    with pytest.raises(ConfigError, match=r"speed.compile: fused blocks are no modules"):
        chosen(speed=SpeedConfig(compile="blocks", dense="fused"))
    for settings, why in (
        ({"device": CPU}, "half precision on a GPU"),
        ({"world": 2}, "batch normalisation over several"),
    ):
        with pytest.raises(ConfigError, match=rf"speed.dense: cannot be fused here: .*{why}"):
            chosen(speed=SpeedConfig(dense="fused"), **settings)

    monkeypatch.setattr("trainer.networks.fused.missing", lambda _: "Triton is away")
    assert chosen() == "plain"
    assert held_up_by(config, device=cuda, bf16=True) == "Triton is away"
    with pytest.raises(ConfigError, match=r"Triton is away; use speed.dense=auto"):
        chosen(speed=SpeedConfig(dense="fused"))


def test_what_keeps_kernels_for_gpus_away_is_told(monkeypatch, tmp_path):
    cuda = torch.device("cuda")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert fused.missing(cuda).startswith("Triton, which compiles kernels for GPUs, is not")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert fused.missing(cuda) == "there is no C compiler, which Triton needs"
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert fused.missing(cuda).startswith("Python's headers, which Triton needs")
    (tmp_path / "Python.h").touch()
    assert fused.missing(cuda) == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert fused.missing(cuda) == "they are for GPUs from Ampere on"
    monkeypatch.setattr("torch.version.hip", "7.0")
    assert fused.missing(cuda) == "they have not been tried on AMD's GPUs"


def test_kernels_that_do_not_compile_end_a_run_in_one_line(tiny_shards, tmp_path, monkeypatch):
    class OutOfResources(Exception):
        __module__ = "triton.runtime.errors"

    def failing(*_, **__):
        raise OutOfResources("out of resource: shared memory\nmore")

    monkeypatch.setattr("trainer.update.train_step", failing)
    monkeypatch.setattr("trainer.speed.fused.missing", lambda _: "")
    monkeypatch.setattr("trainer.speed._no_fused", lambda *_: "")
    said = train(tiny_shards, tmp_path / "run", "--stage", "psnr", code=1).output
    assert (
        "error: speed.dense: kernels for this GPU do not compile: out of resource: shared memory;"
        " use --set speed.dense=plain" in said
    )


@pytest.mark.parametrize(
    ("shape", "features", "growth", "norm", "wanted"),
    [
        ((32, 64, 32, 32), 64, 32, "none", True),
        ((32, 64, 32, 32), 64, 32, "batch", True),
        ((1, 32, 16, 16), 32, 32, "none", True),
        ((4, 64, 4, 64), 64, 32, "none", True),
        ((32, 64, 24, 24), 64, 32, "none", False),  # rows that are no power of two
        ((1, 64, 8, 16), 64, 32, "none", False),  # half of a program that normalises
        ((64, 64, 32, 32), 64, 32, "batch", True),
        ((128, 64, 32, 32), 64, 32, "batch", False),  # more moments than a program has room for
        ((128, 64, 32, 32), 64, 32, "none", True),
        ((64, 32, 32, 32), 32, 128, "batch", False),  # of a growing map, too
        ((32, 48, 32, 32), 48, 32, "none", False),
        ((32, 256, 32, 32), 256, 32, "none", False),  # more than shared memory holds
        ((32, 64, 32, 32), 64, 16, "none", False),
        ((1, 64, 2, 256), 64, 32, "none", False),  # a row is longer than a program
        ((4096, 64, 64, 64), 64, 32, "none", False),  # more than 32 bits count
    ],
)
def test_fused_blocks_take_shapes_that_their_kernels_are_for(shape, features, growth, norm, wanted):
    module = DenseBlock(features=features, growth=growth, norm=norm)
    block = module.to(memory_format=torch.channels_last).pieces()
    x = SimpleNamespace(shape=shape, is_cuda=True, dtype=torch.bfloat16)
    assert fused.fits(x, block) is wanted
    assert not fused.fits(SimpleNamespace(shape=shape, is_cuda=False, dtype=x.dtype), block)
    assert not fused.fits(SimpleNamespace(shape=shape, is_cuda=True, dtype=torch.float32), block)
    if norm == "batch":
        assert not fused.fits(x, module.eval().pieces())
    module.to(memory_format=torch.contiguous_format)
    assert not fused.fits(x, module.train().pieces())


def test_a_block_that_cannot_be_fused_is_plain():
    body = RRDBNet(scale=2, features=16, blocks=1, growth=8).train()
    x = torch.rand(1, 3, 8, 8)
    wanted = body(x)
    for module in body.modules():
        if isinstance(module, DenseBlock):
            module.form = "fused"
        elif isinstance(module, Conv3x3):
            module.fused = True
    assert torch.equal(body(x), wanted)
