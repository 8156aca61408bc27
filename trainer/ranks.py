"""The processes of one training job: who this one is, and what they do together.

There is no wrapper around the networks: each step reduces one flat tensor per network (ADR 9).
CUDA tensors travel by NCCL, those on the CPU by gloo.
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
    """A collective failed: some other rank has gone, or the network between them."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job; alone by default, and then everything here is free."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number among the processes of this machine."""
    local_world: int = 1
    grouped: bool = False
    """Whether even one process alone talks through a process group, as tests of the ways want."""

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.world == 1 and not self.grouped

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def mean_(self, flat: Tensor) -> None:
        """Replace a tensor by its mean over the ranks; the same bits on each of them."""
        if not self.alone:
            with talking():
                dist.all_reduce(flat)
            flat.div_(self.world)

    def gathered(self, ours: Tensor) -> Tensor:
        """The tensors [n ...] of all ranks, one after the other, each of the same n.

        Its gradient reaches this rank's part alone, as often as there are ranks: a loss of the whole,
        the same on each rank, gives parameters whose gradients' `mean_` is that of the loss.
        """
        return ours if self.alone else _Gathered.apply(ours, self)  # type: ignore[no-untyped-call]  # as torch has it

    def share(self, value: T) -> T:
        """What rank 0 has of a small picklable value, on every rank."""
        if self.alone:
            return value
        shared = [value]
        with talking():
            dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        return shared[0]

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What rank 0 has, on every rank, on the CPU; what the others bring is ignored."""
        if self.alone:
            return dict(tensors)
        sent = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        shapes = self.share({name: (value.shape, value.dtype) for name, value in sent.items()})
        found = {}
        for name, (shape, dtype) in shapes.items():
            value = sent[name] if self.first else torch.empty(shape, dtype=dtype)
            with talking():
                dist.broadcast(value, src=0)
            found[name] = value
        return found

    def gather(self, values: Tensor) -> list[Tensor]:
        """The CPU tensors [n ...] of all ranks, in the order of the ranks; each has its own n."""
        if self.alone:
            return [values]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with talking():
            dist.all_gather(sizes, torch.tensor([len(values)]))
        longest = max(int(size) for size in sizes)
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in sizes]
        with talking():
            dist.all_gather(found, padded)
        return [each[: int(size)] for each, size in zip(found, sizes, strict=True)]

    def wait(self) -> None:
        """Until every rank is here."""
        if not self.alone:
            with talking():
                dist.all_reduce(torch.zeros(1))

    def check_equal(self, tensors: Mapping[str, Tensor], *, what: str) -> None:
        """Every rank must hold the same bits.

        Raises:
            UsrganError: names the ranks that differ from rank 0.
        """
        if self.alone:
            return
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
        found = self.gather(torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8))
        odd = [str(rank) for rank, other in enumerate(found) if not other.equal(found[0])]
        if odd:
            raise UsrganError(
                f"{what}: rank {', '.join(odd)} holds other networks than rank 0, which must not be;"
                " nothing was saved: run the same command again to go on from the last checkpoint"
            )

    def check_alike(self, asked: dict[str, Any]) -> None:
        """Every rank must have been asked for the same.

        Raises:
            UsageError: names what this rank and rank 0 were asked for.
        """
        first = self.share(asked)
        for name in first | asked:
            if asked.get(name) != first.get(name):
                raise UsageError(
                    f"rank {self.rank}: {name} is {asked.get(name)} here, and {first.get(name)} for rank 0;"
                    " give every machine the same shards, options and files"
                )
        self.wait()  # nobody goes on without those that were asked for something else


ALONE = Ranks()


class _Gathered(torch.autograd.Function):
    """`Ranks.gathered`."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, ranks: Ranks) -> Tensor:  # noqa: ANN401  as torch has it
        """All parts, in the order of the ranks."""
        ctx.ranks = ranks
        parts = [torch.empty_like(ours) for _ in range(ranks.world)]
        with talking():
            dist.all_gather(parts, ours.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  as torch has it
        """This rank's part."""
        return ctx.ranks.world * gradients[0].chunk(ctx.ranks.world)[ctx.ranks.rank], None


def from_environment() -> Ranks:
    """Who this process is by RANK, WORLD_SIZE and LOCAL_RANK, as torchrun and `--gpus` set them.

    Raises:
        UsageError: they make no sense together.
    """
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE: is set, but RANK, WORLD_SIZE and LOCAL_RANK are not three numbers;"
            " unset it, or start by torchrun"
        ) from None
    if not 0 <= rank < world:
        raise UsageError(f"RANK: {rank} is none of {world} ranks (WORLD_SIZE); start by torchrun")
    return Ranks(rank=rank, world=world, local=local, local_world=local_world)


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Tell a failed exchange from an error of our own.

    Raises:
        LostRank: another rank has gone.
    """
    try:
        yield
    except RuntimeError as error:  # gloo, NCCL and the store have no class in common
        raise LostRank(" ".join(str(error).split())) from error
