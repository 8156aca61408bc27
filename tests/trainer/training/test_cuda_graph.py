"""When a step is captured, replayed or neither, on a stand-in for CUDA; `test_gpu_speed` has the real one."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from trainer.training import cuda_graph


class Stream:
    device = torch.device("cpu")

    def wait_stream(self, other) -> None:
        assert isinstance(other, Stream)


@pytest.fixture
def cuda(monkeypatch):
    """Captures by doing nothing but remember; replays what was captured on what now lies in its places."""
    known = SimpleNamespace(capturing=False, captured=[], replays=0, modes=[], streams=[])

    class Graph:
        def replay(self):
            known.replays += 1
            for work in known.captured:
                work()

    @contextmanager
    def capture(_graph, capture_error_mode="global"):
        known.modes.append(capture_error_mode)
        known.capturing = True
        yield
        known.capturing = False

    def make_stream(device):
        known.streams.append(Stream())
        return known.streams[-1]

    stand_in = SimpleNamespace(
        Stream=make_stream,
        current_stream=lambda device: Stream(),
        stream=lambda stream: contextmanager(lambda: iter([None]))(),
        CUDAGraph=Graph,
        graph=capture,
    )
    monkeypatch.setattr(cuda_graph.torch, "cuda", stand_in)
    return known


def step_of(known, *, other=lambda: False):
    """A step whose outcome is the sum of its batch and its wish to stop; eager runs are counted."""
    eager = []
    outcome = torch.zeros(())

    def step(lr, hr, stop):
        def work():
            outcome.copy_(lr.sum() + hr.sum() + 100 * stop)

        if known.capturing:
            known.captured.append(work)
            return outcome
        eager.append(len(lr))
        return lr.sum() + hr.sum() + 100 * stop

    return cuda_graph.capture_later(step, other=other), eager


def ones(count: int) -> torch.Tensor:
    return torch.ones(count)


def test_a_step_is_captured_after_its_warm_up_and_replayed_on_each_new_batch(cuda):
    step, eager = step_of(cuda)
    found = [step(n * ones(2), n * ones(3), n == 6).item() for n in range(1, 8)]
    assert found == [5, 10, 15, 20, 25, 130, 35]
    assert len(eager) == cuda_graph.WARM_UP
    assert len(cuda.captured) == 1
    assert cuda.replays == 7 - cuda_graph.WARM_UP


def test_another_shape_and_other_work_run_uncaptured(cuda):
    odd = iter([False] * 5 + [True] + [False] * 9)
    step, eager = step_of(cuda, other=lambda: next(odd))
    for _ in range(5):
        step(ones(2), ones(3), False)
    before = cuda.replays
    assert step(ones(1), ones(3), False).item() == 4
    assert step(ones(2), ones(3), False).item() == 5
    assert cuda.replays == before + 1
    for _ in range(2):
        step(ones(2), ones(3), False)
    assert len(eager) >= cuda_graph.WARM_UP + 1


def test_steps_that_are_not_captured_share_one_stream_and_its_memory(cuda):
    step, eager = step_of(cuda, other=lambda: True)
    for _ in range(6):
        step(ones(2), ones(3), False)
    assert len(eager) == 6
    assert len(cuda.streams) == 1


def test_threads_that_pin_memory_do_not_break_a_capture(cuda):
    step, _ = step_of(cuda)
    for _ in range(5):
        step(ones(2), ones(3), False)
    assert cuda.modes == ["thread_local"]
