"""Guards for autograd functions whose backward pass is written by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

Backward = TypeVar("Backward", bound=Callable[..., Any])


def once_differentiable(backward: Backward) -> Backward:
    """Refuse to differentiate a hand-written gradient a second time.

    torch's own decorator returns a constant where the incoming gradient is one, and a penalty would be lost.
    """

    @functools.wraps(backward)
    def run_once(*arguments: Any) -> Any:  # noqa: ANN401  the signature of the wrapped function
        if torch.is_grad_enabled():  # as under `create_graph`
            raise NotImplementedError("fused kernels can be differentiated only once")
        return backward(*arguments)

    return run_once  # type: ignore[return-value]  # same signature


def check_grads_accumulate(accumulators: Iterable[Any]) -> None:
    """Refuse a backward pass that does not add to the `.grad` of all given leaves.

    To be called inside a backward pass that adds to `.grad` itself. torch has no public name for this question;
    its own `register_multi_grad_hook` asks the engine in the same way.

    Args:
        accumulators: the `AccumulateGrad` nodes of the leaves, from `ctx.next_functions`; None for a frozen leaf.

    Raises:
        RuntimeError: the pass was started by `torch.autograd.grad`, or by `backward(inputs=...)` without some leaf.
    """
    if not all(_accumulates(node) for node in accumulators if node is not None):
        raise RuntimeError(
            "fused blocks add gradients to .grad inside the backward pass: use backward() without inputs,"
            " not torch.autograd.grad; or use speed.dense=plain"
        )


def _accumulates(node: Any) -> bool:  # noqa: ANN401  nodes of the engine have no common type
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that torch.autograd.grad captures
        return False
