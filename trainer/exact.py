"""Float32 as it is written: what is measured or kept must not depend on how a GPU rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Convolve in full float32 inside; cuDNN rounds factors to ten bits otherwise, and the fourth digit changes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
