"""What `bench-sr train` compares is the same work, and its floor is the arithmetic of the live networks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import msgspec
import pytest
import torch
from click.testing import CliRunner

from shards.errors import UsrganError
from trainer.bench.agree import CAPTURED_STEPS, Contestant, check_same_work
from trainer.bench.flop import flop_of
from trainer.bench.implementations import PLAIN
from trainer.bench.peer import PEERS, peer_step
from trainer.bench.rounds import percentile, race, ratio_of_medians
from trainer.bench.train import batch_of, trained
from trainer.cli import bench_main
from trainer.config.load import load_config
from trainer.config.schema import SpeedConfig
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.losses.adversarial import discriminator_loss
from trainer.training.acceleration import apply
from trainer.training.cuda_graph import WARM_UP
from trainer.training.speed_settings import build_step
from trainer.training.state import build_state

CPU = torch.device("cpu")
SMALL = ["generator.features=8", "generator.blocks=1", "generator.growth=4", "optim.lr=1e-5"]
SMALL += ["discriminator.features=4", "content.layer=conv1_1"]


def test_flop_of_the_papers_networks_are_those_of_an_independent_count():
    """shared/research/gpu.md counted them by another script: 110.139 and 183.88 GFLOP a pair."""
    config = load_config("usrgan", stage="gan", overrides=["generator.norm=none"])  # none counts
    found = flop_of(config, stage="gan", scale=4, hr_size=128)
    assert found.step == pytest.approx(183.88, abs=0.01)
    # the generator goes forward once and back twice, but for the gradient of the LR picture
    first_layer = 2 * 9 * 3 * 64 * 32 * 32 / 1e9
    assert 3 * found.generator_forward - first_layer == pytest.approx(110.139, abs=0.001)


def test_flop_of_stage_psnr_are_three_passes_less_the_gradient_of_the_picture():
    found = flop_of(load_config("tiny", stage="psnr"), stage="psnr", scale=4, hr_size=128)
    assert found.step == pytest.approx(3 * found.generator_forward - 2 * 27 * 16 * 1024 / 1e9)


@pytest.mark.parametrize("judged", ["peer-amp", "peer-lean"])
def test_a_peers_first_losses_are_ours(judged):
    config = load_config("tiny", stage="gan", overrides=SMALL)
    lr, hr = batch_of(2, CPU)
    state = build_state(config, stage="gan", scale=4, device=CPU, content_weights=None)
    found = peer_step(PEERS["peer-fp32"], state, config, lr, hr).step()
    other = peer_step(PEERS[judged], state, config, lr, hr).step()
    sr = state.generator(lr)
    assert found["pixel"] == pytest.approx((sr - hr).abs().mean().item(), rel=1e-5)
    for loss in ("pixel", "content"):
        assert float(other[loss]) == pytest.approx(float(found[loss]), rel=2e-2)


def contestant(*, bf16: bool = False, peer: str = "", speed: SpeedConfig = PLAIN) -> Contestant:
    """One of ours, or a peer, from the same weights on the same batch."""
    config = load_config("tiny", stage="gan", overrides=SMALL)
    lr, hr = batch_of(2, CPU)
    state = build_state(config, stage="gan", scale=4, device=CPU, content_weights=None)
    state.generator.train()
    if peer:
        return peer_step(PEERS[peer], state, config, lr, hr)
    apply(state, speed)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=speed)
    return Contestant(
        step=lambda: step(lr, hr, False).losses,
        networks=trained(state),
        rounded=bf16,
        kind="non-saturating",
    )


def with_standing_discriminator(one: Contestant) -> Contestant:
    """The same, but that its discriminator never learns."""
    network = one.networks["discriminator"]
    start = copy.deepcopy(network.state_dict())

    def run():
        losses = one.step()
        network.load_state_dict(start)
        return losses

    return replace(one, step=run)


def with_broken_discriminator_half(one: Contestant) -> Contestant:
    """The same, but that its discriminator takes real patches for generated ones."""

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "trainer.training.objectives.discriminator_loss",
                lambda kind, real, fake: discriminator_loss(kind, fake, real),
            )
            return one.step()

    return replace(one, step=run)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_work_is_timed(bf16):
    keep = msgspec.structs.replace(PLAIN, allocator="keep")
    ours = {"plain": contestant(bf16=bf16), "keep": contestant(bf16=bf16, speed=keep)}
    names = ["peer-amp-cl"] if bf16 else ["peer-fp32", "peer-lean"]
    peers = {name: contestant(peer=name) for name in names}
    assert "generator and discriminator moved alike" in check_same_work(ours | peers)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("spoil", [with_standing_discriminator, with_broken_discriminator_half])
def test_one_of_ours_with_a_wrong_discriminator_half_is_not_timed(spoil, bf16):
    broken = spoil(contestant(bf16=bf16))
    with pytest.raises(UsrganError, match=r"b does other work than a: .*; no ratio is printed"):
        check_same_work({"a": contestant(bf16=bf16), "b": broken})


@pytest.mark.parametrize("name", ["peer-fp32", "peer-amp", "peer-lean"])
def test_a_peer_whose_discriminator_stands_still_is_not_timed(name):
    broken = with_standing_discriminator(contestant(peer=name))
    with pytest.raises(UsrganError, match=r"other work than a: its discriminator moves 0 times"):
        check_same_work({"a": contestant(), "b": broken})


def test_other_losses_or_other_weights_at_the_start_are_other_work():
    numbers = iter([0.9, 0.8, 0.7])
    twice = replace(contestant(), step=lambda: {"pixel": next(numbers)})
    with pytest.raises(UsrganError, match=r"b does other work than a: pixel of step 1 is 0.9"):
        check_same_work({"a": contestant(), "b": twice})
    ahead = contestant()
    ahead.step()
    with pytest.raises(UsrganError, match=r"its generator starts from other weights"):
        check_same_work({"a": contestant(), "b": ahead})


def test_a_graph_is_replayed_before_it_is_timed():
    assert CAPTURED_STEPS > WARM_UP + 1


def test_all_take_turns_and_the_first_round_does_not_count():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = race(ways, rounds=2, steps=2, device=CPU)
    assert "".join(order) == "ab" + 2 * "aabb"
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}


def test_a_ratio_lies_within_its_interval_which_narrows_with_the_spread():
    wide = ratio_of_medians([3.0, 4.0, 5.0, 4.1, 3.9], [1.0, 2.0, 3.0, 2.1, 1.9])
    narrow = ratio_of_medians([4.0, 4.01, 4.02], [2.0, 2.01, 2.0])
    for ratio, (low, high) in (wide, narrow):
        assert low <= ratio <= high
        assert ratio == pytest.approx(2, rel=0.01)
    assert narrow[1][1] - narrow[1][0] < wide[1][1] - wide[1][0]
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5


def test_the_command_prints_what_the_contract_names(tiny_shards, monkeypatch):
    monkeypatch.setattr("trainer.bench.wait.STEPS", 2)
    sets = [part for each in SMALL for part in ("--set", each)]
    options = ["--config", "tiny", "--batch", "1", "--rounds", "1", "--device", "cpu", *sets]
    options += ["--impl", "auto,plain", "--peer", "peer-fp32", "--json"]
    ended = CliRunner().invoke(bench_main, ["train", "--shards", str(tiny_shards), *options])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert set(found["stages"]) == {"psnr", "gan"}
    for stage in found["stages"].values():
        for name in ("patches_per_s", "floor_fraction", "speedup_over_peer"):
            assert stage[name] > 0
        assert 0 <= stage["data_wait_fraction"] < 1
        assert [row["name"] for row in stage["rows"]] == ["auto", "plain", "peer-fp32"]
        assert stage["peer"] == "peer-fp32"
    assert found["more"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--impl", "fast"], "--impl fast: there is no such way; choose of auto"),
        (["--peer", "basicsr"], "--peer basicsr: there is no such way; choose of all, none"),
        (["--batch", "3x"], "--batch 3x: write numbers"),
        (["--impl", "graph", "--device", "cpu"], "speed.graph: a CUDA graph needs a CUDA device"),
    ],
)
def test_a_wrong_option_is_one_line(options, words):
    ended = CliRunner().invoke(bench_main, ["train", "--config", "tiny", "--batch", "1", *options])
    assert ended.exit_code == 2
    assert words in ended.stderr
