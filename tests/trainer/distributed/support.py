"""Tasks that several ranks compute together: `python -m tests.trainer.distributed.support FOLDER`.

Each rank saves its results as FOLDER/RANK.pt. `run_ranks` starts them and loads the results. With one
rank the same code runs without a process group.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards.errors import UsageError, UsrganError
from trainer.config.load import load_config
from trainer.config.schema import Config
from trainer.distributed.group_lifetime import open_process_group
from trainer.distributed.heartbeat import Heartbeat
from trainer.distributed.process_group import ProcessGroup, group_from_environment
from trainer.distributed.rendezvous import connect_store, host_store
from trainer.losses.adversarial import discriminator_loss
from trainer.training.state import TrainState, build_state, network_tensors, state_tensors
from trainer.training.step import count_step, train_step

SETTINGS = [
    "batch_size=8", "generator.features=8", "generator.blocks=1", "generator.growth=4",
    "discriminator.features=4", "discriminator.dense=8", "content.layer=conv1_2",
]  # fmt: skip
CASES = {
    f"{stage} {norm} {micros}": [f"generator.norm={norm}", f"accumulate={micros}"]
    for stage in ("psnr", "gan")
    for norm, micros in (("none", 1), ("none", 2), ("batch", 1))
}


def images(
    ranks: ProcessGroup, *, seed: int = 0, batch: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's part of one global batch."""
    generator = torch.Generator().manual_seed(seed)
    lr = torch.rand(batch, 3, 8, 8, generator=generator)
    hr = torch.rand(batch, 3, 32, 32, generator=generator)
    share = slice(
        ranks.rank * batch // ranks.world_size, (ranks.rank + 1) * batch // ranks.world_size
    )
    return lr[share], hr[share]


def build(case: str, ranks: ProcessGroup) -> tuple[TrainState, Config]:
    stage = case.split()[0]
    config = load_config("tiny", stage=stage, overrides=[*SETTINGS, *CASES[case]])
    state = build_state(
        config, stage=stage, scale=4, device=torch.device("cpu"), content_weights=None,
        synced=ranks.world_size > 1,
    )  # fmt: skip
    state.generator.train()
    return state, config


def cloned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def steps(ranks: ProcessGroup) -> dict[str, Any]:
    """Take two steps per case; return gradients of the first, and the state after the second."""
    found = {}
    for case in CASES:
        state, config = build(case, ranks)
        first = train_step(state, config, *images(ranks), False, ranks=ranks)
        flats = [state.gradients.flat]
        if state.adversary is not None:
            flats.append(state.adversary.gradients.flat)
        gradients = {str(n): flat.clone() for n, flat in enumerate(flats)}
        count_step(state, config, first)
        count_step(
            state, config, train_step(state, config, *images(ranks, seed=1), False, ranks=ranks)
        )
        found[case] = {
            "gradients": gradients,
            "losses": cloned(first.losses),
            "after": cloned(state_tensors(state)),
        }
    return found


def nonfinite(ranks: ProcessGroup) -> dict[str, Any]:
    """Take a good step, then one in which only the last rank has a NaN loss."""
    found = {}
    for case in ("psnr batch 1", "gan batch 1"):
        state, config = build(case, ranks)
        count_step(state, config, train_step(state, config, *images(ranks), False, ranks=ranks))
        before = cloned(state_tensors(state))
        lr, hr = images(ranks, seed=1)
        if ranks.rank == ranks.world_size - 1:
            hr[0, 0, 0, 0] = float("nan")
        outcome = train_step(state, config, lr, hr, False, ranks=ranks, stop=ranks.rank == 1)
        count_step(state, config, outcome)
        flags = zip(outcome.flag_names, outcome.nonfinite_flags, strict=True)
        signs = [name for name, flag in flags if flag]
        found[case] = {"before": before, "after": cloned(state_tensors(state)), "signs": signs}
    return found


def collectives(ranks: ProcessGroup) -> dict[str, Any]:
    """Return results of collectives, and the errors for unequal weights and arguments."""
    state, _ = build("gan none 1", ranks)
    ranks.check_equal(network_tensors(state), what="run")
    gathered = ranks.all_gather(
        torch.arange(3 + 2 * ranks.rank, dtype=torch.float64).reshape(-1, 1)
    )
    mine = {"a": torch.full((2, 3), float(ranks.rank)), "b": torch.tensor(ranks.rank)}
    found: dict[str, Any] = {
        "gathered": gathered,
        "shared": ranks.broadcast({"rank": ranks.rank}),
        "tensors": ranks.broadcast_tensors(mine),
    }
    assert state.adversary is not None
    if ranks.rank == 1:
        vectors = state.adversary.discriminator.conv0_0.parametrizations["weight"][0]
        vectors.get_buffer("_u").mul_(1 + 1e-6)
    try:
        ranks.check_equal(network_tensors(state), what="run")
    except UsrganError as error:
        found["unequal_weights"] = str(error)
    ranks.check_same_args({"batch_size": 8})
    try:
        ranks.check_same_args({"batch_size": 8, "optim.lr": 1e-4 * (1 + ranks.rank)})
    except UsageError as error:
        found["unequal_args"] = str(error)
        ranks.barrier()  # rank 0 waits there
    return found


def compared(ranks: ProcessGroup) -> dict[str, Any]:
    """Return a loss over the logits of all ranks, and the mean gradient of a weight before it."""
    share = slice(ranks.rank * 8 // ranks.world_size, (ranks.rank + 1) * 8 // ranks.world_size)
    weight = torch.ones(1, requires_grad=True)
    real, fake = (weight * torch.arange(8.0)[share], weight * torch.arange(8.0).square()[share])
    loss = discriminator_loss(
        "relativistic", ranks.all_gather_grad(real), ranks.all_gather_grad(fake)
    )
    loss.backward()
    assert weight.grad is not None
    ranks.all_reduce_mean_(weight.grad)
    return {"loss": loss.detach(), "gradient": weight.grad}


TASKS: dict[str, Callable[[ProcessGroup], dict[str, Any]]] = {
    "steps": steps, "nonfinite": nonfinite, "collectives": collectives, "compared": compared,
}  # fmt: skip


def find_free_port() -> int:
    """Return a local TCP port that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_ranks(folder: Path, *, world: int) -> list[Any]:
    """Run every task on several ranks; return the results of each rank."""
    port = find_free_port()
    folder.mkdir(exist_ok=True)
    places = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.distributed.support", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **places, "RANK": str(rank)},
        )
        for rank in range(world)
    ]
    try:
        assert [child.wait(timeout=120) for child in children] == [0] * world
    finally:
        for child in children:
            child.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@contextlib.contextmanager
def group_of_one(device: torch.device) -> Iterator[ProcessGroup]:
    """Open and close a process group of a single process, as `train-sr` does."""
    ranks = ProcessGroup(grouped=True)
    store, _ = host_store()
    heartbeat = Heartbeat(store, ranks, silence=60, print_error=print)
    try:
        with open_process_group(ranks, heartbeat, device):
            yield ranks
    finally:
        heartbeat.stop()
        if dist.is_initialized():  # a test failed inside
            dist.destroy_process_group()


def main() -> None:
    torch.use_deterministic_algorithms(mode=True)
    ranks, folder = group_from_environment(), sys.argv[1]
    heartbeat = Heartbeat(connect_store(ranks), ranks, silence=60, print_error=print)
    with open_process_group(ranks, heartbeat, torch.device("cpu")):
        found = {name: task(ranks) for name, task in TASKS.items()}
        torch.save(found, Path(folder) / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main()
