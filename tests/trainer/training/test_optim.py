"""Schedules and averages are functions of the patches seen, with the values their formulas say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer.config.schema import OptimConfig
from trainer.training.optim import (
    build_adam,
    copy_buffers,
    learning_rate,
    set_learning_rate,
    take_step,
    update_ema,
)

BASE = 2e-3
TOTAL = 10_000


def rate(seen: int, *, base: float = BASE, total: int = TOTAL, **settings) -> float:
    return learning_rate(OptimConfig(**settings), base, patches_seen=seen, patches_total=total)


# the learning rate


@pytest.mark.parametrize("seen", [0, 1, 32, TOTAL, 2 * TOTAL])
def test_the_papers_learning_rate_is_constant(seen):
    assert rate(seen) == BASE


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_rises_in_a_line_to_the_whole_rate(schedule):
    settings = {"schedule": schedule, "warmup_patches": 1000}
    risen = [rate(seen, **settings) for seen in range(0, 1000, 10)]
    assert risen == pytest.approx([BASE * seen / 1000 for seen in range(0, 1000, 10)])
    assert rate(999, **settings) == pytest.approx(BASE, rel=2e-3)
    assert rate(1000, **settings) == BASE


@pytest.mark.parametrize("warmup", [0, 1000])
def test_cosine_falls_from_the_whole_rate_over_half_of_it_to_zero(warmup):
    settings = {"schedule": "cosine", "warmup_patches": warmup}
    left = TOTAL - warmup
    assert rate(warmup, **settings) == BASE
    assert rate(warmup + left // 4, **settings) == pytest.approx(BASE * (2 + math.sqrt(2)) / 4)
    assert rate(warmup + left // 2, **settings) == pytest.approx(BASE / 2)
    assert rate(TOTAL, **settings) == pytest.approx(0, abs=1e-18)
    assert rate(TOTAL + 5000, **settings) == pytest.approx(0, abs=1e-18)
    fallen = [rate(seen, **settings) for seen in range(warmup, TOTAL, 100)]
    assert fallen == sorted(fallen, reverse=True)


def test_multistep_falls_by_its_factor_at_each_milestone():
    settings = {"schedule": "multistep", "milestones": (0.125, 0.25, 0.5), "decay": 0.5}
    at = {0: 1, 1249: 1, 1250: 0.5, 2499: 0.5, 2500: 0.25, 5000: 0.125, TOTAL: 0.125}
    assert {seen: rate(seen, **settings) for seen in at} == {
        seen: BASE * factor for seen, factor in at.items()
    }


def test_a_stage_shorter_than_its_warm_up_still_has_a_rate():
    assert rate(500, total=400, schedule="cosine", warmup_patches=1000) == BASE / 2
    assert rate(1000, total=400, schedule="cosine", warmup_patches=1000) == BASE


def test_the_rate_is_in_proportion_to_the_base_and_blind_to_the_configured_one():
    settings = {"schedule": "cosine", "warmup_patches": 100}
    for seen in (50, 100, 7777):
        assert rate(seen, base=1.0, lr=5.0, **settings) * BASE == pytest.approx(
            rate(seen, **settings)
        )


def test_adam_takes_the_papers_settings_and_every_group_the_rate():
    layers = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizer = build_adam(OptimConfig(lr=3e-4, beta1=0.4, beta2=0.9), layers[0].parameters())
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.4, 0.9), 1e-8)
    assert group["weight_decay"] == 0
    optimizer.add_param_group({"params": list(layers[1].parameters())})
    set_learning_rate(optimizer, 7e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [7e-5, 7e-5]


def test_adams_first_step_is_the_rate_in_the_direction_of_the_sign():
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = build_adam(OptimConfig(), [weight])
    set_learning_rate(optimizer, 0.25)
    weight.grad = torch.tensor([3.0, -0.01, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.75, 1.25, 1.0]))


@pytest.mark.parametrize("capturing", [True, False])
def test_adam_is_told_whether_it_is_captured(capturing, monkeypatch):
    """torch refuses to capture one that does not know, and warns of one that was told too early."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    group, seen = {}, []
    stand_in = SimpleNamespace(
        param_groups=[group], step=lambda: seen.append(group["capturable"]), found_inf=None
    )
    take_step(stand_in, skip=SimpleNamespace(is_cuda=True))
    assert seen == [capturing]


# the average


def update(average: nn.Module, live: nn.Module, **settings) -> None:
    update_ema(list(average.parameters()), list(live.parameters()), **settings)


def networks() -> tuple[nn.Module, nn.Module]:
    live = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    return average, live


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("batch_size", [1, 8, 50])
def test_after_its_half_life_in_patches_an_old_weight_counts_half(batch_size):
    average, live = networks()
    fill(average, 1.0)
    fill(live, 0.0)
    for seen in range(10**6, 10**6 + 400, batch_size):  # far beyond the ramp
        update(average, live, halflife=400, batch_size=batch_size, patches_seen=seen)
    for parameter in average.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.5), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("seen", "halflife"), [(100, 10.0), (3999, 399.9), (4000, 400), (9e9, 400)]
)
def test_the_half_life_ramps_up_with_a_tenth_of_the_patches_seen(seen, halflife):
    average, live = networks()
    fill(average, 1.0)
    fill(live, 0.0)
    update(average, live, halflife=400, batch_size=8, patches_seen=int(seen))
    wanted = 0.5 ** (8 / halflife)
    assert average[0].bias[0].item() == pytest.approx(wanted, rel=1e-6)


def test_the_first_update_forgets_the_random_start():
    average, live = networks()
    fill(average, 1e6)
    fill(live, 3.0)
    update(average, live, halflife=400, batch_size=8, patches_seen=8)
    assert average[0].bias[0].item() == pytest.approx(3 + 1e6 * 0.5**10, rel=1e-4)
    update(average, live, halflife=400, batch_size=8, patches_seen=0)
    assert average[0].bias[0].item() == 3


def test_the_average_copies_batch_statistics_and_leaves_the_live_network_alone():
    average, live = networks()
    live(torch.rand(4, 1, 8, 8))
    before = {name: value.clone() for name, value in live.state_dict().items()}
    copy_buffers(average, live)
    update(average, live, halflife=400, batch_size=8, patches_seen=10**6)
    assert live[1].num_batches_tracked == 1
    for source, target in zip(live.buffers(), average.buffers(), strict=True):
        assert torch.equal(source, target)
        assert source.data_ptr() != target.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in live.state_dict().items())
    assert not torch.equal(average[0].weight, live[0].weight)


def test_averaging_equal_weights_changes_no_bit():
    average, live = networks()
    average.load_state_dict(live.state_dict())
    for seen in (8, 800, 80_000):
        update(average, live, halflife=400, batch_size=8, patches_seen=seen)
    for source, target in zip(live.parameters(), average.parameters(), strict=True):
        assert torch.equal(source, target)
