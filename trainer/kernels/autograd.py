"""Guards for autograd functions whose backward pass is written by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
