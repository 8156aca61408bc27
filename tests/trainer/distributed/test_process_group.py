"""Several ranks compute the same as one process, and stay bit-identical."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from shards.errors import UsageError
from tests.trainer.distributed.support import CASES, compared, group_of_one, run_ranks, steps
from trainer.distributed.process_group import SINGLE_PROCESS, group_from_environment

ROUNDING = 2e-5
"""Tolerance relative to the largest value of a tensor: float32 sums in another order."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("ranks"), world=2)


@pytest.fixture(scope="module")
def two(both):
    return [found["steps"] for found in both]


@pytest.fixture(scope="module")
def one():
    return steps(SINGLE_PROCESS)


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = ROUNDING * max(value.double().abs().max().item(), 1e-3) if value.numel() else 0
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradients_of_one(one, two, case):
    assert_close(two[0][case]["gradients"], one[case]["gradients"])
    assert_close(two[0][case]["losses"], one[case]["losses"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_hold_the_same_bits_after_two_steps(two, case):
    for name, value in two[0][case]["after"].items():
        assert torch.equal(value, two[1][case]["after"][name]), name


@pytest.mark.parametrize("case", ["psnr batch 1", "gan batch 1"])
def test_statistics_and_singular_vectors_of_two_ranks_are_those_of_one(one, two, case):
    def buffers(found):
        parts = ("running_", "num_batches", "._u", "._v")
        return {n: v for n, v in found[case]["after"].items() if any(part in n for part in parts)}

    assert len(buffers(one)) > 30
    for name, value in buffers(one).items():
        # after a step of Adam, which magnifies rounding where a gradient is nearly zero
        torch.testing.assert_close(buffers(two[0])[name], value, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_micro_batches_have_the_gradients_of_the_whole_batch(one, stage):
    assert_close(one[f"{stage} none 2"]["gradients"], one[f"{stage} none 1"]["gradients"])
    assert_close(one[f"{stage} none 2"]["losses"], one[f"{stage} none 1"]["losses"])


def test_a_loss_that_compares_patches_of_all_ranks_is_that_of_one(both):
    wanted = compared(SINGLE_PROCESS)
    for found in (rank["compared"] for rank in both):
        torch.testing.assert_close(found, wanted)


def test_a_loss_that_is_bad_on_one_rank_changes_no_bit_on_any(both):
    for rank in both:
        for case, found in rank["nonfinite"].items():
            assert {"stop", "pixel"} <= set(found["signs"])
            assert ("content" in found["signs"]) == case.startswith("gan")
            for name, value in found["before"].items():
                assert torch.equal(found["after"][name], value), (case, name)


def test_what_rank_0_has_is_shared_and_what_differs_is_named(both):
    for found in (rank["collectives"] for rank in both):
        assert [len(each) for each in found["gathered"]] == [3, 5]
        assert found["gathered"][1].flatten().tolist() == [0, 1, 2, 3, 4]
        assert found["shared"] == {"rank": 0}
        assert found["tensors"]["a"].abs().max() == 0
        assert found["tensors"]["b"].item() == 0
        assert "weights of rank 1 differ from rank 0" in found["unequal_weights"]
    assert "unequal_args" not in both[0]["collectives"]
    said = both[1]["collectives"]["unequal_args"]
    assert said.startswith("rank 1: optim.lr is 0.0002 here and 0.0001 on rank 0;")


def test_a_group_of_one_computes_what_one_process_does_bit_for_bit(one, monkeypatch):
    reduce, sizes = dist.all_reduce, set()

    def noted(tensor):
        sizes.add(tensor.numel())
        return reduce(tensor)

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(dist, "all_reduce", noted)
    with group_of_one(torch.device("cpu")) as ranks:
        found, logits, shared = steps(ranks), compared(ranks), ranks.broadcast({"a": 1})
    for case, wanted in one.items():
        for part, tensors in wanted.items():
            assert found[case][part].keys() == tensors.keys()
            for name, value in tensors.items():
                assert torch.equal(found[case][part][name], value), (case, part, name)
        assert {gradient.numel() for gradient in wanted["gradients"].values()} <= sizes
    assert logits == compared(SINGLE_PROCESS)
    assert shared == {"a": 1}


def test_one_process_needs_no_group():
    values = torch.ones(3)
    SINGLE_PROCESS.all_reduce_mean_(values)
    SINGLE_PROCESS.barrier()
    assert SINGLE_PROCESS.all_gather(values)[0].equal(values)
    assert SINGLE_PROCESS.broadcast(5) == 5


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x", "RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "2"}],
)
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, environment):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert group_from_environment() == SINGLE_PROCESS
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="start by torchrun"):
        group_from_environment()
