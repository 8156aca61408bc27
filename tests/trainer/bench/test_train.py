"""`bench-sr train` compares the same work; its floor is the arithmetic of the live networks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import msgspec
import pytest
import torch
from click.testing import CliRunner

from shards.errors import UsrganError
from trainer.bench.equivalence import CAPTURED_STEPS, Candidate, check_same_work
from trainer.bench.flops import count_flops
from trainer.bench.implementations import PLAIN
from trainer.bench.peer import PEERS, build_peer
from trainer.bench.timing import compute_ratio, time_rounds
from trainer.bench.train import get_trained_networks, make_batch
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
    found = count_flops(config, stage="gan", scale=4, hr_size=128)
    assert found.step == pytest.approx(183.88, abs=0.01)
    # the generator goes forward once and back twice, but for the gradient of the LR picture
    first_layer = 2 * 9 * 3 * 64 * 32 * 32 / 1e9
    assert 3 * found.generator_forward - first_layer == pytest.approx(110.139, abs=0.001)


def test_flop_of_stage_psnr_are_three_passes_less_the_gradient_of_the_picture():
    found = count_flops(load_config("tiny", stage="psnr"), stage="psnr", scale=4, hr_size=128)
    assert found.step == pytest.approx(3 * found.generator_forward - 2 * 27 * 16 * 1024 / 1e9)


@pytest.mark.parametrize("judged", ["peer-amp", "peer-lean"])
def test_first_losses_of_a_peer_are_ours(judged):
    config = load_config("tiny", stage="gan", overrides=SMALL)
    lr, hr = make_batch(2, CPU)
    state = build_state(config, stage="gan", scale=4, device=CPU, content_weights=None)
    found = build_peer(PEERS["peer-fp32"], state, config, lr, hr).step()
    other = build_peer(PEERS[judged], state, config, lr, hr).step()
    sr = state.generator(lr)
    assert found["pixel"] == pytest.approx((sr - hr).abs().mean().item(), rel=1e-5)
    for loss in ("pixel", "content"):
        assert float(other[loss]) == pytest.approx(float(found[loss]), rel=2e-2)


def build_candidate(*, bf16: bool = False, peer: str = "", speed: SpeedConfig = PLAIN) -> Candidate:
    """One of ours or a peer, always from the same weights and batch."""
    config = load_config("tiny", stage="gan", overrides=SMALL)
    lr, hr = make_batch(2, CPU)
    state = build_state(config, stage="gan", scale=4, device=CPU, content_weights=None)
    state.generator.train()
    if peer:
        return build_peer(PEERS[peer], state, config, lr, hr)
    apply(state, speed)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=speed)
    return Candidate(
        step=lambda: step(lr, hr, False).losses,
        networks=get_trained_networks(state),
        rounded=bf16,
        kind="non-saturating",
    )


def freeze_discriminator(candidate: Candidate) -> Candidate:
    """The same candidate with a discriminator that never learns."""
    network = candidate.networks["discriminator"]
    start = copy.deepcopy(network.state_dict())

    def run():
        losses = candidate.step()
        network.load_state_dict(start)
        return losses

    return replace(candidate, step=run)


def swap_discriminator_labels(candidate: Candidate) -> Candidate:
    """The same candidate with the labels of its discriminator swapped."""

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "trainer.training.objectives.discriminator_loss",
                lambda kind, real, fake: discriminator_loss(kind, fake, real),
            )
            return candidate.step()

    return replace(candidate, step=run)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_work_is_timed(bf16):
    keep = msgspec.structs.replace(PLAIN, allocator="keep")
    ours = {"plain": build_candidate(bf16=bf16), "keep": build_candidate(bf16=bf16, speed=keep)}
    names = ["peer-amp-cl"] if bf16 else ["peer-fp32", "peer-lean"]
    peers = {name: build_candidate(peer=name) for name in names}
    assert "generator and discriminator moved alike" in check_same_work(ours | peers)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("spoil", [freeze_discriminator, swap_discriminator_labels])
def test_one_of_ours_with_a_wrong_discriminator_half_is_not_timed(spoil, bf16):
    broken = spoil(build_candidate(bf16=bf16))
    with pytest.raises(UsrganError, match=r"b does other work than a: .*; no ratio is printed"):
        check_same_work({"a": build_candidate(bf16=bf16), "b": broken})


@pytest.mark.parametrize("name", ["peer-fp32", "peer-amp", "peer-lean"])
def test_a_peer_whose_discriminator_stands_still_is_not_timed(name):
    broken = freeze_discriminator(build_candidate(peer=name))
    with pytest.raises(UsrganError, match=r"other work than a: its discriminator moves 0 times"):
        check_same_work({"a": build_candidate(), "b": broken})


def test_other_losses_or_other_weights_at_the_start_are_other_work():
    numbers = iter([0.9, 0.8, 0.7])
    twice = replace(build_candidate(), step=lambda: {"pixel": next(numbers)})
    with pytest.raises(UsrganError, match=r"b does other work than a: pixel of step 1 is 0.9"):
        check_same_work({"a": build_candidate(), "b": twice})
    ahead = build_candidate()
    ahead.step()
    with pytest.raises(UsrganError, match=r"its generator starts from other weights"):
        check_same_work({"a": build_candidate(), "b": ahead})


def test_a_graph_is_replayed_before_it_is_timed():
    assert CAPTURED_STEPS > WARM_UP + 1


def test_rounds_are_interleaved_and_the_warm_up_round_is_discarded():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = time_rounds(ways, rounds=2, steps=2, device=CPU)
    assert "".join(order) == "ab" + 2 * "aabb"
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}


def test_a_ratio_lies_within_its_interval_which_narrows_with_the_spread():
    wide = compute_ratio([3.0, 4.0, 5.0, 4.1, 3.9], [1.0, 2.0, 3.0, 2.1, 1.9])
    narrow = compute_ratio([4.0, 4.01, 4.02], [2.0, 2.01, 2.0])
    for ratio, (low, high) in (wide, narrow):
        assert low <= ratio <= high
        assert ratio == pytest.approx(2, rel=0.01)
    assert narrow[1][1] - narrow[1][0] < wide[1][1] - wide[1][0]


def test_the_command_prints_the_figures_of_the_contract(tiny_shards, monkeypatch):
    monkeypatch.setattr("trainer.bench.data_wait.STEPS", 2)
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
        (["--impl", "fast"], "--impl fast: no such name; choose from auto"),
        (["--peer", "basicsr"], "--peer basicsr: no such name; choose from all, none"),
        (["--batch", "3x"], "--batch 3x: not numbers; write"),
        (["--impl", "graph", "--device", "cpu"], "speed.graph: a CUDA graph needs a CUDA device"),
    ],
)
def test_a_wrong_option_is_one_line(options, words):
    ended = CliRunner().invoke(bench_main, ["train", "--config", "tiny", "--batch", "1", *options])
    assert ended.exit_code == 2
    assert words in ended.stderr
