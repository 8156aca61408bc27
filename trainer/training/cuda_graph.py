"""A whole training step as one CUDA graph: thousands of kernels, one launch.

A captured step must keep the address of every tensor that it reads or writes, must not synchronise with
the device, and must not change shapes. So gradients are views of one flat tensor, and Adam is the fused
one with its step count and learning rate on the device. Weights that are loaded later are copied in
place. A restored state needs a new capture only because its step is a new function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.training.step import Outcome

WARM_UP = 3
"""Steps that run eagerly on a side stream before the capture: libraries choose their algorithms, and Adam creates
its moments. They are ordinary steps of the training."""


def capture_later(
    step: Callable[[Tensor, Tensor, Tensor], Outcome], *, other: Callable[[], bool]
) -> Callable[[Tensor, Tensor, bool], Outcome]:
    """Return a step that is captured at its fourth call and replayed from then on.

    The next call overwrites the returned tensors: copy them, or queue their use on the device, before it. A batch
    of another shape than the captured one runs uncaptured, and so does a step for which `other` returns True.
    """
    taken = 0
    side: torch.cuda.Stream | None = None
    graph: torch.cuda.CUDAGraph | None = None
    places: tuple[Tensor, Tensor, Tensor] | None = None
    outcome: Outcome | None = None

    def run(lr: Tensor, hr: Tensor, stop: bool) -> Outcome:
        nonlocal taken, side, graph, places, outcome
        taken += 1
        wish = torch.full((), float(stop), device=lr.device)
        if taken <= WARM_UP or other() or (places is not None and places[0].shape != lr.shape):
            side = side or torch.cuda.Stream(lr.device)
            return _aside(lambda: step(lr, hr, wish), side)
        if graph is None or places is None or outcome is None:
            places = torch.empty_like(lr), torch.empty_like(hr), torch.empty_like(wish)
            graph = torch.cuda.CUDAGraph()
            # the threads of the reader pin memory meanwhile: only what this one does counts
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outcome = step(*places)
        for place, given in zip(places, (lr, hr, wish), strict=True):
            place.copy_(given)
        graph.replay()
        return outcome

    return run


def _aside(work: Callable[[], Outcome], side: torch.cuda.Stream) -> Outcome:
    """Run on another stream, before and after everything else.

    It is the same one each time: the memory that a step frees is kept for the stream that it ran on.
    """
    side.wait_stream(torch.cuda.current_stream(side.device))
    with torch.cuda.stream(side):
        found = work()
    torch.cuda.current_stream(side.device).wait_stream(side)
    return found
