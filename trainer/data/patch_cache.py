"""Cache of decoded patches in main memory or on the device; it changes no batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.errors import UsageError
from shards.format.manifest import Manifest
from shards.read.split import SplitReader
from trainer.config.schema import Cache


class PatchCache:
    """All patches of a split in their stored size, uint8 RGB; filled on first use."""

    def __init__(self, split: SplitReader, device: torch.device) -> None:
        low, high = stored_sides(split.manifest)
        shape = (len(split), low, low, 3), (len(split), high, high, 3)
        # Linux allocates pages only when they are written
        self.lr, self.hr = (torch.empty(each, dtype=torch.uint8, device=device) for each in shape)
        self.filled: npt.NDArray[np.bool_] = np.zeros(len(split), np.bool_)

    def missing(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of the positions whose patches are not cached yet."""
        return positions[~self.filled[positions]]

    def put(self, positions: npt.NDArray[np.int64], lr: Tensor, hr: Tensor) -> None:
        """Store patches [n h w 3], possibly from pinned memory."""
        where = _send_numbers(positions, self.lr.device)
        self.lr.index_copy_(0, where, lr.to(self.lr.device, non_blocking=True))
        self.hr.index_copy_(0, where, hr.to(self.hr.device, non_blocking=True))
        self.filled[positions] = True

    def take(
        self, positions: npt.NDArray[np.int64], corners: npt.NDArray[np.int64], *, side: int
    ) -> tuple[Tensor, Tensor]:
        """Return LR [n side side 3] and HR of cached patches, cropped at `corners` [n 2], in LR pixels."""
        scale = self.hr.shape[1] // self.lr.shape[1]
        where = _send_numbers(positions, self.lr.device)
        if side == self.lr.shape[1]:
            return self.lr[where], self.hr[where]
        at = _send_numbers(corners, self.lr.device)
        return _gather_crops(self.lr, where, at, side), _gather_crops(
            self.hr, where, scale * at, scale * side
        )


def check_cache_size(split: SplitReader, *, cache: Cache, gib: float, device: torch.device) -> None:
    """Check that the decoded split fits into its cache.

    Raises:
        UsageError: the patches need more than `data.cache_gib`, or more than the GPU has free.
    """
    if cache == "none":
        return
    need = 3 * len(split) * sum(side * side for side in stored_sides(split.manifest)) / 2**30
    if need > gib:
        raise UsageError(
            f"data.cache_gib = {gib:g}: the {len(split):,} decoded training patches take {need:.1f} GiB;"
            " raise it if the machine has that much memory, or set data.cache=none"
        )
    if cache == "device" and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        if need > free:
            raise UsageError(
                f"data.cache = device: the {len(split):,} decoded training patches take {need:.1f} GiB, and"
                f" the GPU has {free:.1f} GiB free; set data.cache=ram or none"
            )


def stored_sides(manifest: Manifest) -> tuple[int, int]:
    """Return the sides of stored LR and HR patches, in pixels."""
    return manifest.hr_size // manifest.scale, manifest.hr_size


def _send_numbers(numbers: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Move numbers to the device through pinned memory: otherwise the host waits for all queued work."""
    held = torch.from_numpy(numbers)
    return (held.pin_memory() if device.type == "cuda" else held).to(device, non_blocking=True)


def _gather_crops(images: Tensor, where: Tensor, corners: Tensor, side: int) -> Tensor:
    """Squares of `side` pixels with their left and top at `corners` [n 2], out of images[where]."""
    along = torch.arange(side, device=images.device)
    columns = corners[:, 0, None, None] + along[None, None, :]
    rows = corners[:, 1, None, None] + along[None, :, None]
    return images[where[:, None, None], rows, columns]
