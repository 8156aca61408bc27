from __future__ import annotations

import pytest
import torch

from trainer.optim import OptimConfig, learning_rate, update_average

COSINE = OptimConfig(schedule="cosine", warmup_patches=100)


@pytest.mark.parametrize(
    ("seen", "rate"), [(0, 0.0), (50, 0.5), (100, 1.0), (550, 0.5), (1000, 0.0), (2000, 0.0)]
)
def test_warm_up_rises_and_cosine_falls_to_nothing(seen, rate):
    assert learning_rate(COSINE, 1.0, patches_seen=seen, patches_total=1000) == pytest.approx(rate)


def test_the_papers_rate_is_constant():
    rates = {learning_rate(OptimConfig(), 1e-4, patches_seen=n, patches_total=9) for n in range(20)}
    assert rates == {1e-4}


def test_an_old_weight_counts_half_after_the_half_life():
    average, live = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(average.weight, 1.0)
    torch.nn.init.constant_(live.weight, 0.0)
    for step in range(25):
        update_average(average, live, halflife=100, batch_size=4, patches_seen=10_000 + 4 * step)
    assert average.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_the_average_forgets_the_random_start_at_once():
    average, live = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(average.weight, 1.0)
    torch.nn.init.constant_(live.weight, 0.0)
    update_average(average, live, halflife=1e6, batch_size=4, patches_seen=4)
    assert average.weight.item() < 0.01


def test_the_average_takes_over_the_statistics_of_batch_norm():
    average, live = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    live(torch.rand(4, 2, 3, 3) + 5)
    update_average(average, live, halflife=100, batch_size=4, patches_seen=400)
    assert torch.equal(average.running_mean, live.running_mean)
    assert average.num_batches_tracked.item() == 1
