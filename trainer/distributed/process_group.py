"""The processes (ranks) of one training job, and their collective operations.

No wrapper surrounds the networks: each step reduces one flat tensor per network (ADR 9).
CUDA tensors travel by NCCL, CPU tensors by gloo.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shards.errors import UsageError, UsrganError

T = TypeVar("T")


class LostRank(UsrganError):
    """A collective failed because another rank, or the network between them, is gone."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job; a single process by default, whose collectives do nothing."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_world_size: int = 1
    grouped: bool = False
    """Whether even a single process uses torch's collectives, for tests."""

    @property
    def is_single(self) -> bool:
        """Whether there is no other process to communicate with."""
        return self.world_size == 1 and not self.grouped

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def all_reduce_mean_(self, flat: Tensor) -> None:
        """Replace a tensor by its mean over the ranks, bit-identical on each of them."""
        if not self.is_single:
            with wrap_collective_errors():
                dist.all_reduce(flat)
            flat.div_(self.world_size)

    def all_gather_grad(self, local: Tensor) -> Tensor:
        """Return the tensors [n ...] of all ranks, concatenated in rank order; every rank has the same n.

        The gradient reaches this rank's part alone, multiplied by the number of ranks. A loss of the whole, equal on
        each rank, then gives parameter gradients whose mean over the ranks is the gradient of that loss.
        """
        return local if self.is_single else _AllGatherGrad.apply(local, self)  # type: ignore[no-untyped-call]  # as torch has it

    def broadcast(self, value: T) -> T:
        """Return rank 0's value, a small picklable object, on every rank."""
        if self.is_single:
            return value
        values = [value]
        with wrap_collective_errors():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors on the CPU of every rank; those of the other ranks are ignored."""
        if self.is_single:
            return dict(tensors)
        local = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        shapes = self.broadcast({name: (value.shape, value.dtype) for name, value in local.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            value = local[name] if self.is_main else torch.empty(shape, dtype=dtype)
            with wrap_collective_errors():
                dist.broadcast(value, src=0)
            received[name] = value
        return received

    def all_gather(self, values: Tensor) -> list[Tensor]:
        """Return the CPU tensors [n ...] of all ranks in rank order; n may differ between ranks."""
        if self.is_single:
            return [values]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with wrap_collective_errors():
            dist.all_gather(sizes, torch.tensor([len(values)]))
        longest = max(int(size) for size in sizes)
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in sizes]
        with wrap_collective_errors():
            dist.all_gather(parts, padded)
        return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait until every rank arrives."""
        if not self.is_single:
            with wrap_collective_errors():
                dist.all_reduce(torch.zeros(1))

    def check_equal(self, tensors: Mapping[str, Tensor], *, what: str) -> None:
        """Check that every rank holds the same bits.

        Raises:
            UsrganError: names the ranks that differ from rank 0.
        """
        if self.is_single:
            return
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
        digests = self.all_gather(torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8))
        odd = [str(rank) for rank, other in enumerate(digests) if not other.equal(digests[0])]
        if odd:
            ranks = f"rank {odd[0]} differ" if len(odd) == 1 else f"ranks {', '.join(odd)} differ"
            raise UsrganError(
                f"{what}: weights of {ranks} from rank 0; checkpoint not saved;"
                " run the same command again to resume from the last one"
            )

    def check_same_args(self, args: dict[str, Any]) -> None:
        """Check that every rank was started with the same arguments.

        Raises:
            UsageError: names the argument with this rank's and rank 0's value.
        """
        main = self.broadcast(args)
        for name in main | args:
            if args.get(name) != main.get(name):
                raise UsageError(
                    f"rank {self.rank}: {name} is {args.get(name)} here and {main.get(name)} on rank 0;"
                    " give every machine the same shards, options and files"
                )
        self.barrier()  # no rank trains without those that have other arguments


SINGLE_PROCESS = ProcessGroup()


class _AllGatherGrad(torch.autograd.Function):
    """`ProcessGroup.all_gather_grad`."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: ProcessGroup) -> Tensor:  # noqa: ANN401  as torch has it
        """Return all parts in rank order."""
        ctx.group = group
        parts = [torch.empty_like(local) for _ in range(group.world_size)]
        with wrap_collective_errors():
            dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  as torch has it
        """Return the gradient of this rank's part."""
        group = ctx.group
        return group.world_size * gradients[0].chunk(group.world_size)[group.rank], None


def group_from_environment() -> ProcessGroup:
    """Return the group that RANK, WORLD_SIZE and LOCAL_RANK describe, as torchrun and `--gpus` set them.

    Raises:
        UsageError: the variables contradict each other.
    """
    if "WORLD_SIZE" not in os.environ:
        return SINGLE_PROCESS
    try:
        world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE: is set, but RANK, WORLD_SIZE and LOCAL_RANK are not three integers;"
            " unset it, or start by torchrun"
        ) from None
    if not 0 <= rank < world_size:
        raise UsageError(
            f"RANK: {rank} is not below WORLD_SIZE, which is {world_size}; start by torchrun"
        )
    return ProcessGroup(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
    )


@contextlib.contextmanager
def wrap_collective_errors() -> Iterator[None]:
    """Turn the errors of a failed collective into `LostRank`.

    Raises:
        LostRank: another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:  # gloo, NCCL and the store share no other base class
        raise LostRank(" ".join(str(error).split())) from error
