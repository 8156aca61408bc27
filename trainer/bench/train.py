"""`bench-sr train`: a training step beside the machine's floor and beside BasicSR's way, in one run."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from trainer.bench.agree import CAPTURED_STEPS, STEPS, Contestant, Losses, check_same_work
from trainer.bench.flop import flop_of
from trainer.bench.implementations import IMPLEMENTATIONS
from trainer.bench.machine import measure_machine, product, product_side
from trainer.bench.peer import PEERS, peer_step
from trainer.bench.result import Row, StageResult, Train
from trainer.bench.rounds import percentile, race, ratio_of_medians
from trainer.bench.work import operations, peak_mib
from trainer.config.schema import Config, EmaConfig, SpeedConfig, Stage
from trainer.device import use_bf16
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.training.acceleration import apply, keep_freed_memory, return_freed_memory
from trainer.training.speed_settings import build_step, resolve
from trainer.training.state import TrainState, build_state
from trainer.training.step import count_step

SCALE, HR_SIZE = 4, 128
"""Scale and HR patch side of the paper, for which a step is measured."""
PRODUCT = "matrix product"
RATE = 1e-5
"""Learning rate: the first steps of Adam move each weight by it whatever its gradient, and larger ones
would blow the rounding of bf16 up until nothing can be compared."""


def bench_train(
    configs: Mapping[Stage, Config],
    *,
    batches: Sequence[int],
    implementations: Sequence[str],
    peers: Sequence[str],
    device: torch.device,
    rounds: int,
    steps: int,
    small: bool,
    content_weights: Path | None,
    data_wait: Callable[[Stage, Config], float] | None,
    command: str,
    say: Callable[[str], None],
) -> Train:
    """Measure the given stages at the given batch sizes."""
    say("measuring the machine")
    machine = measure_machine(device, small=small)
    found: list[StageResult] = []
    for stage, config in configs.items():
        gflop = flop_of(config, stage=stage, scale=SCALE, hr_size=HR_SIZE).step
        for batch in batches:
            say(f"stage {stage}, batch {batch}")
            found.append(
                _bench_stage(
                    stage,
                    msgspec.structs.replace(config, batch_size=batch),
                    gflop=gflop,
                    implementations=implementations,
                    peers=peers,
                    device=device,
                    rounds=rounds,
                    steps=steps,
                    small=small,
                    content_weights=content_weights,
                    data_wait=data_wait if batch == batches[0] else None,
                )
            )
            gc.collect()
            if any("compile" in name for name in implementations):
                torch.compiler.reset()  # or the next shapes count as recompilations of these
    first = {each.stage: each for each in reversed(found)}
    return Train(
        stages={stage: first[stage] for stage in configs},
        more=[each for each in found if each is not first[each.stage]],
        machine=machine,
        command=command,
    )


def _bench_stage(
    stage: Stage,
    config: Config,
    *,
    gflop: float,
    implementations: Sequence[str],
    peers: Sequence[str],
    device: torch.device,
    rounds: int,
    steps: int,
    small: bool,
    content_weights: Path | None,
    data_wait: Callable[[Stage, Config], float] | None,
) -> StageResult:
    config = msgspec.structs.replace(
        config, optim=msgspec.structs.replace(config.optim, lr=RATE), ema=EmaConfig(1e4)
    )
    bf16 = use_bf16(config, device)
    lr, hr = batch_of(config.batch_size, device)

    def fresh() -> TrainState:
        state = build_state(
            config, stage=stage, scale=SCALE, device=device, content_weights=content_weights
        )
        state.generator.train()
        return state

    def ours(speed: SpeedConfig) -> Contestant:
        state = fresh()
        apply(state, speed)
        step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=speed)
        keep = speed.allocator == "keep"

        def run() -> Losses:
            (keep_freed_memory if keep else return_freed_memory)()
            outcome = step(lr, hr, False)
            count_step(state, config, outcome)
            return outcome.losses

        tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
        return Contestant(
            step=run, networks=trained(state), rounded=bf16 or tf32, kind=config.adversarial.kind
        )

    # everybody starts from the same weights
    speeds = {name: _decided(name, config, device) for name in implementations}
    ways = {name: ours(speed) for name, speed in speeds.items()}
    plain = fresh()
    for name in peers:
        ways[name] = _on_its_own(peer_step(PEERS[name], plain, config, lr, hr))
    captured = any(speed.graph == "step" for speed in speeds.values())
    agreement = check_same_work(ways, steps=CAPTURED_STEPS if captured else STEPS)

    # time them
    side = product_side(device, small=small)
    dtype = torch.bfloat16 if bf16 else torch.float32
    contestants: dict[str, Callable[[], object]] = {name: way.step for name, way in ways.items()}
    contestants[PRODUCT] = product(device, dtype, side)
    taken = race(contestants, rounds=rounds, steps=steps, device=device)
    rate = 2 * side**3 / statistics.median(taken.pop(PRODUCT))  # FLOP in a millisecond
    floor = gflop * 1e9 * config.batch_size / rate
    rows = [
        Row(
            name=name,
            ms_p10=percentile(times, 0.1),
            ms_p50=percentile(times, 0.5),
            ms_p90=percentile(times, 0.9),
            patches_per_s=config.batch_size / percentile(times, 0.5) * 1e3,
            floor_fraction=floor / percentile(times, 0.5),
            operations=operations(contestants[name], device),
            peak_mib=peak_mib(contestants[name], device),
        )
        for name, times in taken.items()
    ]
    best = min(peers, key=lambda name: statistics.median(taken[name])) if peers else None
    first = implementations[0]
    ratio = ratio_of_medians(taken[best], taken[first]) if best else None
    return StageResult(
        stage=stage,
        batch=config.batch_size,
        bf16=bf16,
        gflop_per_pair=gflop,
        implementation=first,
        settings=msgspec.to_builtins(speeds[first]),
        patches_per_s=rows[0].patches_per_s,
        floor_fraction=rows[0].floor_fraction,
        speedup_over_peer=ratio[0] if ratio else None,
        speedup_interval=ratio[1] if ratio else None,
        peer=best,
        speedup_over={row.name: row.ms_p50 / rows[0].ms_p50 for row in rows[1:]},
        data_wait_fraction=data_wait(stage, config) if data_wait else None,
        agreement=agreement,
        rows=rows,
        rounds=rounds,
    )


def _decided(name: str, config: Config, device: torch.device) -> SpeedConfig:
    """Return the resolved settings of one implementation."""
    wanted = msgspec.structs.replace(config, speed=IMPLEMENTATIONS[name])
    return resolve(wanted, device=device, bf16=use_bf16(config, device))


def trained(state: TrainState) -> dict[str, nn.Module]:
    """The networks whose weights a step moves."""
    found = {"generator": state.generator}
    if state.adversary is not None:
        found["discriminator"] = state.adversary.discriminator
    return found


def _on_its_own(peer: Contestant) -> Contestant:
    """A peer's step with the memory of a process that never heard of `speed.allocator`."""

    def run() -> Losses:
        return_freed_memory()
        return peer.step()

    return replace(peer, step=run)


def batch_of(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A seeded batch in [0, 1]: LR [size 3 32 32] is what HR [size 3 128 128] averages to."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(size, 3, HR_SIZE // SCALE, HR_SIZE // SCALE, generator=generator)
    fine = torch.rand(size, 3, HR_SIZE, HR_SIZE, generator=generator)
    hr = 0.8 * torch.nn.functional.interpolate(low, scale_factor=SCALE) + 0.2 * fine
    lr = torch.nn.functional.avg_pool2d(hr, SCALE)
    layout = torch.channels_last
    return lr.to(device, memory_format=layout), hr.to(device, memory_format=layout)
