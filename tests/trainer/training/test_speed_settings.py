"""Settings of speed change how a step is made, and nothing of what it computes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest
import torch
from torch.nn import functional as F

from shards.errors import ConfigError
from tests.trainer.support import logged, train
from trainer.bench.implementations import PLAIN
from trainer.bench.train import make_batch
from trainer.config.load import load_config
from trainer.config.schema import SpeedConfig
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.kernels.toolchain import unavailable_reason
from trainer.losses.content import build_content_features
from trainer.training.acceleration import apply
from trainer.training.speed_settings import build_step, missing_fast_path, resolve
from trainer.training.state import build_state
from trainer.weights.safetensors_io import load_tensors, save_tensors

CPU = torch.device("cpu")
SMALL = ["generator.features=12", "generator.blocks=1", "discriminator.features=4"]
SMALL += ["content.layer=conv2_2", "ema.halflife_patches=0", "optim.lr=2e-4"]
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
    with torch.no_grad():  # the branches of a fresh network are too small to show a difference
        for name, parameter in state.generator.named_parameters():
            if name.startswith(("body.", "conv_body.")) and name.endswith("weight"):
                parameter.mul_(BRANCHES)
    decided = resolve(config, device=CPU, bf16=bf16)
    apply(state, decided)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=decided)
    lr, hr = (
        each[..., : each.shape[-1] // 2, : each.shape[-1] // 2] for each in make_batch(2, CPU)
    )
    rows = [step(lr, hr, False).losses for _ in range(steps)]
    found = [{name: value.item() for name, value in row.items()} for row in rows]
    return found, {name: value.clone() for name, value in state.generator.state_dict().items()}


def with_(**settings: str) -> SpeedConfig:
    return msgspec.structs.replace(PLAIN, **settings)


def test_losses_of_twenty_steps_in_bf16_equal_those_in_float32_within_noise():
    wanted, _ = losses(PLAIN, stage="psnr", bf16=False)
    found, _ = losses(PLAIN, stage="psnr", bf16=True)
    pairs = [(ours["pixel"], plain["pixel"]) for ours, plain in zip(found, wanted, strict=True)]
    assert max(abs(ours - plain) / plain for ours, plain in pairs) < 0.03


@pytest.mark.parametrize("settings", [{"content": "bf16"}, {"allocator": "keep"}])
def test_weights_in_bf16_and_kept_memory_change_no_bit(settings):
    wanted = losses(PLAIN, stage="gan", bf16=True, steps=3)
    found = losses(with_(**settings), stage="gan", bf16=True, steps=3)
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


def test_the_content_gradient_in_bf16_points_where_that_in_float32_does():
    config = load_config("tiny", stage="gan", overrides=["content.layer=conv3_4 + conv5_4"])
    network = build_content_features(config.content, weights=None)
    lr, hr = (
        each[..., : each.shape[-1] // 2, : each.shape[-1] // 2] for each in make_batch(1, CPU)
    )
    gradients = []
    for bf16 in (False, True):
        sr = F.interpolate(lr, scale_factor=4.0, mode="bicubic").requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            pairs = zip(network(sr), network(hr), strict=True)
        losses = [(ours.float() - theirs.float()).square().mean() for ours, theirs in pairs]
        found = [torch.autograd.grad(loss, sr, retain_graph=True)[0] for loss in losses]
        gradients.append(torch.stack(found).flatten(1))
    conv3_4, conv5_4 = F.cosine_similarity(*gradients, dim=1)
    assert conv3_4 > 0.985
    assert conv5_4 > 0.95  # docs/internals/log.md says why not .999


def test_auto_is_decided_for_the_device_and_nothing_else_is():
    config = load_config("usrgan", stage="gan")
    decided = resolve(config, device=CPU, bf16=True)
    assert "auto" not in msgspec.structs.asdict(decided).values()
    assert decided.content == "bf16"
    assert resolve(config, device=CPU, bf16=False).content == "fp32"
    asked = msgspec.structs.replace(config, speed=with_(compile="blocks"))
    assert resolve(asked, device=CPU, bf16=True) == with_(compile="blocks")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["speed.graph=step"], "speed.graph: a CUDA graph needs a CUDA device"),
        (
            ["speed.dense=fused"],
            "speed.dense: cannot be fused here: it is for steps in half precision",
        ),
        (["speed.content=bf16", "precision=fp32"], "speed.content: bf16 weights need bf16 steps"),
    ],
)
def test_an_impossible_setting_is_refused_in_one_line(overrides, words):
    config = load_config("usrgan", stage="gan", overrides=overrides)
    with pytest.raises(ConfigError, match=words):
        resolve(config, device=CPU, bf16=config.precision != "fp32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dynamo's and Inductor's own, about their own code
def test_compiled_blocks_have_the_losses_of_plain_ones_in_one_graph_each():
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    wanted, _ = losses(PLAIN, stage="psnr", bf16=True, steps=4)
    found, _ = losses(with_(compile="blocks"), stage="psnr", bf16=True, steps=4)
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


def test_a_run_resumes_with_other_settings_of_speed(tiny_shards, tmp_path):
    constant = ["--stage", "psnr", "--set", "optim.schedule=constant"]
    train(tiny_shards, tmp_path / "run", *constant, "--set", "epochs=1")
    train(
        tiny_shards,
        tmp_path / "run",
        *constant,
        "--set",
        "epochs=2",
        "--set",
        "speed.allocator=system",
    )
    assert [row["epoch"] for row in logged(tmp_path / "run")] == [1, 2]


def test_an_impossible_step_is_refused_before_anything_is_written(tiny_shards, tmp_path):
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

    monkeypatch.setattr("trainer.kernels.toolchain.unavailable_reason", lambda _: "")
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

    monkeypatch.setattr("trainer.kernels.toolchain.unavailable_reason", lambda _: "Triton is away")
    assert chosen() == "plain"
    assert missing_fast_path(config, device=cuda, bf16=True) == "Triton is away"
    with pytest.raises(ConfigError, match=r"Triton is away; use speed.dense=auto"):
        chosen(speed=SpeedConfig(dense="fused"))


def test_a_missing_part_of_the_toolchain_is_named(monkeypatch, tmp_path):
    cuda = torch.device("cuda")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert unavailable_reason(cuda).startswith("Triton, which compiles kernels for GPUs, is not")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert unavailable_reason(cuda) == "Triton needs a C compiler, and none was found"
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert unavailable_reason(cuda).startswith("Triton needs Python's headers")
    (tmp_path / "Python.h").touch()
    assert unavailable_reason(cuda) == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert unavailable_reason(cuda).endswith("need a GPU of the Ampere generation or later")
    monkeypatch.setattr("torch.version.hip", "7.0")
    assert unavailable_reason(cuda).endswith("untested on AMD GPUs")


def test_kernels_that_do_not_compile_end_a_run_in_one_line(tiny_shards, tmp_path, monkeypatch):
    class OutOfResources(Exception):
        __module__ = "triton.runtime.errors"

    def failing(*_, **__):
        raise OutOfResources("out of resource: shared memory\nmore")

    monkeypatch.setattr("trainer.training.step.train_step", failing)
    monkeypatch.setattr("trainer.training.speed_settings._unfused_reason", lambda *_: "")
    said = train(tiny_shards, tmp_path / "run", "--stage", "psnr", code=1).output
    assert (
        "error: speed.dense: kernels for this GPU do not compile: out of resource: shared memory;"
        " use --set speed.dense=plain" in said
    )


@pytest.mark.parametrize(
    "removed",
    [{"convolutions": "winograd"}, {"dense": "push"}, {"dense": "hybrid", "fusion": "all"}],
)
def test_a_run_whose_checkpoint_names_a_removed_value_resumes_with_the_default(
    tiny_shards, tmp_path, removed
):
    run, constant = tmp_path / "run", ["--stage", "psnr", "--set", "optim.schedule=constant"]
    train(tiny_shards, run, *constant, "--set", "epochs=1", "--set", "speed.allocator=system")
    default = json.loads((run / "run.json").read_text())["speed"]
    assert default["allocator"] == "system"
    for path in (run / "checkpoints/last").iterdir():
        tensors, metadata = load_tensors(path)
        position = json.loads(metadata["position"])
        assert position["speed"] == default
        position["speed"] |= removed
        save_tensors(path, tensors, {"position": json.dumps(position)})
    train(tiny_shards, run, *constant, "--set", "epochs=2")
    assert json.loads((run / "run.json").read_text())["speed"] == default
    assert [row["epoch"] for row in logged(run)] == [1, 2]
