"""The fast path on a CUDA device against the plain one there; run by `make test-gpu`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from itertools import islice

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist

from shards.read.dataset import open_dataset
from tests.trainer.distributed.support import group_of_one
from tests.trainer.support import logged, train
from trainer.bench.implementations import IMPLEMENTATIONS, PLAIN
from trainer.bench.train import make_batch
from trainer.config.load import load_config
from trainer.config.schema import DataConfig, SpeedConfig
from trainer.data.batches import to_float_images
from trainer.data.loader import PatchLoader
from trainer.data.patch_cache import PatchCache
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.networks.rrdb import RRDBNet
from trainer.training.acceleration import apply, fuse
from trainer.training.speed_settings import build_step, resolve
from trainer.training.state import build_state, restore, state_tensors
from trainer.training.step import STOP, count_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # Dynamo's and Inductor's own, about their own code
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
CUDA = torch.device("cuda", 0)
SMALL = ["generator.features=32", "generator.blocks=2", "generator.growth=16", "optim.lr=1e-4"]
SMALL += ["discriminator.features=16", "content.layer=conv2_2", "telemetry.every_patches=1000000"]
STEPS = 20
EXACT = msgspec.structs.replace(PLAIN, convolutions="first")


WIDE = ["generator.growth=32"]
"""A growth that the fused blocks support."""


def run(
    speed: SpeedConfig,
    *,
    stage: str,
    bf16: bool,
    ranks: ProcessGroup = SINGLE_PROCESS,
    steps: int = STEPS,
    norm: str = "none",
    more: Sequence[str] = (),
):
    settings = [*more, f"precision={'bf16' if bf16 else 'fp32'}", f"generator.norm={norm}"]
    config = load_config("tiny", stage=stage, overrides=[*SMALL, *settings])
    config = msgspec.structs.replace(config, speed=speed)
    state = build_state(
        config, stage=stage, scale=4, device=CUDA, content_weights=None, synced=not ranks.is_single
    )
    state.generator.train()
    decided = resolve(config, device=CUDA, bf16=bf16)
    apply(state, decided)
    step = build_step(state, config, bf16, ranks=ranks, speed=decided)
    lr, hr = make_batch(4, CUDA)
    found = []
    for _ in range(steps):
        outcome = step(lr, hr, False)
        count_step(state, config, outcome)
        found.append({name: value.item() for name, value in outcome.losses.items()})
    return found, state


def assert_close(found, wanted, *, rel: float) -> None:
    for number, (ours, plain) in enumerate(zip(found, wanted, strict=True)):
        assert ours == pytest.approx(plain, rel=rel, abs=1e-6), f"step {number}"


@pytest.fixture
def exact(monkeypatch):
    """No TF32, and algorithms that add in one order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_a_captured_step_loses_as_one_that_is_not(stage, exact):
    wanted, _ = run(EXACT, stage=stage, bf16=False)
    found, _ = run(msgspec.structs.replace(EXACT, graph="step"), stage=stage, bf16=False)
    assert_close(found, wanted, rel=1e-3)


def test_a_captured_step_hears_the_wish_to_stop_and_the_learning_rate():
    config = load_config("tiny", stage="psnr", overrides=SMALL)
    config = msgspec.structs.replace(config, speed=IMPLEMENTATIONS["graph"])
    state = build_state(config, stage="psnr", scale=4, device=CUDA, content_weights=None)
    step = build_step(
        state, config, True, ranks=SINGLE_PROCESS, speed=resolve(config, device=CUDA, bf16=True)
    )
    lr, hr = make_batch(4, CUDA)
    for number in range(8):
        outcome = step(lr, hr, number == 6)
        flags = dict(zip(outcome.flag_names, outcome.nonfinite_flags.tolist(), strict=True))
        assert flags[STOP] == (number == 6)
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    for group in state.optimizer.param_groups:
        group["lr"].fill_(0.0)
    step(lr, hr, False)
    assert all(torch.equal(value, before[n]) for n, value in state.generator.state_dict().items())


@pytest.mark.parametrize("name", ["compile", "graph-compile"])
@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_every_rung_in_bf16_loses_as_float32_within_noise(name, stage):
    wanted, _ = run(PLAIN, stage=stage, bf16=False)
    found, _ = run(IMPLEMENTATIONS[name], stage=stage, bf16=True)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours["pixel"] == pytest.approx(plain["pixel"], rel=0.05)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("graph", ["none", "step"])
@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_fused_steps_lose_as_float32_within_noise(stage, graph, norm):
    wanted, _ = run(PLAIN, stage=stage, bf16=False, norm=norm, more=WIDE)
    speed = SpeedConfig(dense="fused", graph=graph)
    found, _ = run(speed, stage=stage, bf16=True, norm=norm, more=WIDE)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours["pixel"] == pytest.approx(plain["pixel"], rel=0.05)


def test_fused_steps_beside_a_u_net_lose_as_float32_within_noise():
    more = [*WIDE, "discriminator.architecture=unet"]
    wanted, _ = run(PLAIN, stage="gan", bf16=False, more=more)
    found, _ = run(SpeedConfig(dense="fused", graph="step"), stage="gan", bf16=True, more=more)
    for ours, plain in zip(found, wanted, strict=True):
        for name in ("pixel", "discriminator"):
            assert ours[name] == pytest.approx(plain[name], rel=0.05)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("upsampler", ["nearest_conv", "pixelshuffle"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_fused_gradients_are_as_near_to_float32_as_plain_ones(norm, upsampler, kept, exact):
    network = RRDBNet(blocks=2, upsampler=upsampler, norm=norm).cuda()
    network.to(memory_format=torch.channels_last).train()
    for name, parameter in network.body.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.05)
            else:
                parameter.mul_(3)
    start = {name: buffer.clone() for name, buffer in network.named_buffers()}
    lr, _ = make_batch(4, CUDA)
    back = torch.randn(4, 3, 128, 128, device=CUDA)

    accelerated = copy.deepcopy(network)
    fuse(accelerated)

    def passed(network: RRDBNet, *, bf16: bool):
        for name, buffer in network.named_buffers():
            buffer.copy_(start[name])
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if kept else None
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            sr = network(lr)
        sr.backward(back)
        grads = {name: each.grad.clone() for name, each in network.named_parameters()}
        return sr.detach(), grads, {name: each.clone() for name, each in network.named_buffers()}

    def apart(found, wanted):
        # a bias before batch normalisation has no gradient, and its rounding is no measure
        idle = {name for name in wanted if norm == "batch" and "rdb" in name and "conv" in name}
        names = [name for name in wanted if not (name in idle and name.endswith("bias"))]
        far = [(found[name] - wanted[name]).norm() / wanted[name].norm() for name in names]
        return torch.stack(far).mean().item()

    sr, grads, buffers = passed(network, bf16=False)
    plain, fused = passed(network, bf16=True), passed(accelerated, bf16=True)
    assert (fused[0] - sr).norm() <= 1.1 * (plain[0] - sr).norm()
    assert apart(fused[1], grads) <= 1.1 * apart(plain[1], grads)
    for name, buffer in buffers.items():
        torch.testing.assert_close(fused[2][name], buffer, rtol=0.02, atol=0.02)


def test_nothing_is_compiled_again_after_the_warm_up():
    counters = torch._dynamo.utils.counters
    _, state = run(IMPLEMENTATIONS["compile"], stage="gan", bf16=True, steps=3)
    before = counters["stats"]["unique_graphs"]
    run_more, _ = run(IMPLEMENTATIONS["compile"], stage="gan", bf16=True, steps=5)
    assert state.generator is not None
    assert run_more
    assert counters["stats"]["unique_graphs"] == before


def test_no_layout_is_changed_within_a_step():
    config = load_config("tiny", stage="psnr", overrides=SMALL)
    state = build_state(config, stage="psnr", scale=4, device=CUDA, content_weights=None)
    step = build_step(state, config, True, ranks=SINGLE_PROCESS, speed=PLAIN)
    lr, hr = make_batch(4, CUDA)
    step(lr, hr, False)
    cuda = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=cuda, acc_events=True) as profiler:
        step(lr, hr, False)
        torch.cuda.synchronize()
    names = [event.name.lower() for event in profiler.events()]
    changed = [name for name in names if "nchwtonhwc" in name or "nhwctonchw" in name]
    assert len(changed) < 10, (
        changed
    )  # of some hundred: layers of three channels are cuDNN's to pad


@pytest.mark.parametrize("speed", [PLAIN, SpeedConfig(dense="fused", graph="none")])
@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_no_step_waits_for_the_device(stage, speed):
    overrides = [*SMALL, *WIDE, "ema.halflife_patches=100"]
    config = load_config("tiny", stage=stage, overrides=overrides)
    speed = resolve(msgspec.structs.replace(config, speed=speed), device=CUDA, bf16=True)
    state = build_state(config, stage=stage, scale=4, device=CUDA, content_weights=None)
    state.generator.train()
    apply(state, speed)
    step = build_step(state, config, True, ranks=SINGLE_PROCESS, speed=speed)
    lr, hr = make_batch(4, CUDA)
    for _ in range(2):
        count_step(state, config, step(lr, hr, False))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")  # a wait raises, which is what this looks for
    try:
        count_step(state, config, step(lr, hr, False))
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_captured_run_goes_on_from_its_checkpoint(tiny_shards, tmp_path):
    options = ["--stage", "psnr", "--device", "cuda", "--set", "optim.schedule=constant"]
    options += ["--set", "speed.graph=step"]
    train(tiny_shards, tmp_path / "run", *options, "--set", "epochs=2")
    again = train(tiny_shards, tmp_path / "run", *options, "--set", "epochs=3")
    assert "resuming at 32 patches" in again.stderr
    assert [row["epoch"] for row in logged(tmp_path / "run")] == [1, 2, 3]


def test_a_restored_state_steps_as_the_one_it_was_saved_from(exact):
    _, state = run(EXACT, stage="gan", bf16=False, steps=5)
    config = load_config("tiny", stage="gan", overrides=[*SMALL, "precision=fp32"])
    other = build_state(config, stage="gan", scale=4, device=CUDA, content_weights=None)
    other.generator.train()
    restore(other, {name: value.clone() for name, value in state_tensors(state).items()})
    lr, hr = make_batch(4, CUDA)
    losses = [
        build_step(each, config, False, ranks=SINGLE_PROCESS, speed=EXACT)(lr, hr, False).losses
        for each in (state, other)
    ]
    for name, value in losses[0].items():
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_one_rank_over_nccl_steps_as_one_process(norm, exact, monkeypatch):
    reduce, devices = dist.all_reduce, []

    def noted(tensor):
        devices.append(tensor.device.type)
        return reduce(tensor)

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(dist, "all_reduce", noted)
    wanted, _ = run(EXACT, stage="gan", bf16=False, steps=5, norm=norm)
    assert not devices
    with group_of_one(CUDA) as ranks:
        found, _ = run(EXACT, stage="gan", bf16=False, steps=5, norm=norm, ranks=ranks)
        logits = torch.arange(4.0, device=CUDA)
        assert torch.equal(ranks.all_gather_grad(logits), logits)
    assert devices.count("cuda") >= 10  # two networks, five steps
    assert_close(found, wanted, rel=1e-4 if norm == "none" else 1e-3)


@pytest.mark.parametrize("side", [16, 8])
def test_patches_come_out_of_a_cache_on_the_device_without_waiting(tiny_shards, side):
    split = open_dataset(tiny_shards).split("train")
    store = PatchCache(split, CUDA)
    positions, corners = np.arange(8), np.zeros((8, 2), np.int64)
    low, high = (torch.full((8, each, each, 3), 7, dtype=torch.uint8) for each in (16, 64))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        store.put(positions, low.pin_memory(), high.pin_memory())
        lr, hr = store.take(positions, corners, side=side)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert lr.shape[1:3] == (side, side)
    assert hr.shape[1:3] == (4 * side, 4 * side)
    assert lr.unique().tolist() == hr.unique().tolist() == [7]


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_batches_reach_a_gpu_as_they_reach_the_cpu(tiny_shards, cache):
    split = open_dataset(tiny_shards).split("train")
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        stream = PatchLoader(
            split,
            seed=1,
            batch_size=4,
            first_step=0,
            config=DataConfig(cache=cache),
            device=device,
        )
        with closing(stream):
            taken = list(islice(stream, 9))
            floats = [to_float_images(each.hr, device, each.dihedrals).cpu() for each in taken]
            found.append([each.mul(255).round() for each in floats])  # a GPU divides otherwise
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
