"""`bench-sr train`: a training step beside the machine's floor and BasicSR's way, in one run."""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from trainer.bench.equivalence import CAPTURED_STEPS, STEPS, Candidate, StepLosses, check_same_work
from trainer.bench.flops import count_flops
from trainer.bench.implementations import IMPLEMENTATIONS
from trainer.bench.peer import PEERS, build_peer
from trainer.bench.timing import compute_ratio, make_matrix_product, measure_peak_mib, time_rounds
from trainer.config.schema import AUTO, Config, EmaConfig, SpeedConfig, Stage
from trainer.device import describe_device, use_bf16
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.training.acceleration import apply, keep_freed_memory, return_freed_memory
from trainer.training.speed_settings import build_step, resolve
from trainer.training.state import TrainState, build_state
from trainer.training.step import count_step

SCALE, HR_SIZE = 4, 128
"""Scale, and side of an HR patch in pixels (the paper)."""
PRODUCT = "matrix product"
LEARNING_RATE = 1e-5
"""Adam's first steps move each weight by the learning rate, whatever its gradient. With larger ones the rounding of
bf16 grows until no two candidates can be compared."""


@dataclass(frozen=True)
class Measurement:
    """Settings that all stages and batch sizes share."""

    implementations: Sequence[str]
    """Names in IMPLEMENTATIONS; the first is the headline."""
    peers: Sequence[str]
    """Names in PEERS."""
    device: torch.device
    rounds: int
    steps: int
    """Steps of each candidate in a round."""
    content_weights: Path | None
    measure_data_wait: Callable[[Stage, Config], float] | None


class Timing(msgspec.Struct, frozen=True):
    """Times of one candidate."""

    name: str
    ms_p10: float
    ms_p50: float
    ms_p90: float
    patches_per_s: float
    floor_fraction: float
    """Time of the step's counted FLOP at the rate of a matrix product of the same rounds, over the median."""
    peak_mib: float | None
    """GPU memory with that of all other candidates; for a captured step, memory outside its graph."""


class StageResult(msgspec.Struct, frozen=True):
    """A stage at one batch size; the headline is the first implementation."""

    stage: Stage
    batch: int
    bf16: bool
    gflop_per_pair: float
    product_tflops: float
    """Rate of the matrix product, in the precision of the steps."""
    implementation: str
    settings: dict[str, str]
    patches_per_s: float
    floor_fraction: float
    speedup_over_peer: float | None
    """Speed over that of the fastest peer; None without a peer."""
    speedup_interval: tuple[float, float] | None
    """95 %, by bootstrap over the steps."""
    peer: str | None
    speedup_over: dict[str, float]
    """Speed over that of each other row."""
    data_wait_fraction: float | None
    """None without --shards."""
    agreement: str
    """Result of the comparison before the timing."""
    rows: list[Timing]
    rounds: int


class Machine(msgspec.Struct, frozen=True):
    """Device and versions."""

    device: str
    versions: dict[str, str]
    threads: int


class Train(msgspec.Struct, frozen=True):
    """The result of `bench-sr train --json`."""

    stages: dict[str, StageResult]
    """By stage, at the first batch size."""
    more: list[StageResult]
    """The other batch sizes."""
    machine: Machine
    command: str


def bench_train(
    configs: Mapping[Stage, Config],
    *,
    batches: Sequence[int],
    measurement: Measurement,
    command: str,
    say: Callable[[str], None],
) -> Train:
    """Measure each stage at each batch size, the wait for data at the first batch size only."""
    stages: dict[str, StageResult] = {}
    more: list[StageResult] = []
    for stage, config in configs.items():
        for batch in batches:
            say(f"stage {stage}, batch {batch}")
            sized = msgspec.structs.replace(config, batch_size=batch)
            result = _bench_stage(stage, sized, measurement, waits=stage not in stages)
            if stage in stages:
                more.append(result)
            else:
                stages[stage] = result
            gc.collect()
            if any("compile" in name for name in measurement.implementations):
                torch.compiler.reset()  # or new shapes count as recompilations
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if measurement.device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    machine = Machine(describe_device(measurement.device), versions, torch.get_num_threads())
    return Train(stages=stages, more=more, machine=machine, command=command)


def _bench_stage(
    stage: Stage, config: Config, measurement: Measurement, *, waits: bool
) -> StageResult:
    device, peers = measurement.device, measurement.peers
    config = msgspec.structs.replace(
        config, optim=msgspec.structs.replace(config.optim, lr=LEARNING_RATE), ema=EmaConfig(1e4)
    )
    bf16, size = use_bf16(config, device), config.batch_size
    lr, hr = make_batch(size, device)

    # all candidates start from the same weights
    def build() -> TrainState:
        weights = measurement.content_weights
        state = build_state(
            config, stage=stage, scale=SCALE, device=device, content_weights=weights
        )
        state.generator.train()
        return state

    speeds = {}
    for name in measurement.implementations:
        speed = config.speed if name == AUTO else IMPLEMENTATIONS[name]
        chosen = msgspec.structs.replace(config, speed=speed)
        speeds[name] = resolve(chosen, device=device, bf16=bf16)
    candidates = {
        name: _build_candidate(build(), config, lr, hr, bf16, speed)
        for name, speed in speeds.items()
    }
    plain = build()
    for name in peers:
        candidates[name] = build_peer(PEERS[name], plain, config, lr, hr)
    captured = any(speed.graph == "step" for speed in speeds.values())
    agreement = check_same_work(candidates, steps=CAPTURED_STEPS if captured else STEPS)

    # time them
    side = 8192 if device.type == "cuda" else 1024
    product = make_matrix_product(device, torch.bfloat16 if bf16 else torch.float32, side)
    works: dict[str, Callable[[], object]] = {name: each.step for name, each in candidates.items()}
    times = time_rounds(
        works | {PRODUCT: product},
        rounds=measurement.rounds,
        steps=measurement.steps,
        device=device,
    )
    product_flop_per_ms = 2 * side**3 / statistics.median(times.pop(PRODUCT))
    gflop = count_flops(config, stage=stage, scale=SCALE, hr_size=HR_SIZE).step
    floor_ms = gflop * 1e9 * size / product_flop_per_ms
    rows = []
    for name, values in times.items():
        p10, p50, p90 = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        peak = measure_peak_mib(works[name], device)
        rows.append(Timing(name, p10, p50, p90, size / p50 * 1e3, floor_ms / p50, peak))
    best = min(peers, key=lambda name: statistics.median(times[name])) if peers else None
    first = measurement.implementations[0]
    speedup, interval = compute_ratio(times[best], times[first]) if best else (None, None)
    measure_wait = measurement.measure_data_wait if waits else None
    return StageResult(
        stage=stage,
        batch=size,
        bf16=bf16,
        gflop_per_pair=gflop,
        product_tflops=product_flop_per_ms / 1e9,
        implementation=first,
        settings=msgspec.to_builtins(speeds[first]),
        patches_per_s=rows[0].patches_per_s,
        floor_fraction=rows[0].floor_fraction,
        speedup_over_peer=speedup,
        speedup_interval=interval,
        peer=best,
        speedup_over={row.name: row.ms_p50 / rows[0].ms_p50 for row in rows[1:]},
        data_wait_fraction=measure_wait(stage, config) if measure_wait else None,
        agreement=agreement,
        rows=rows,
        rounds=measurement.rounds,
    )


def _build_candidate(
    state: TrainState, config: Config, lr: Tensor, hr: Tensor, bf16: bool, speed: SpeedConfig
) -> Candidate:
    apply(state, speed)
    step = build_step(state, config, bf16, ranks=SINGLE_PROCESS, speed=speed)
    set_allocator = keep_freed_memory if speed.allocator == "keep" else return_freed_memory

    def run() -> StepLosses:
        set_allocator()
        outcome = step(lr, hr, False)
        count_step(state, config, outcome)
        return outcome.losses

    tf32 = lr.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    networks = get_trained_networks(state)
    return Candidate(run, networks, rounded=bf16 or tf32, kind=config.adversarial.kind)


def get_trained_networks(state: TrainState) -> dict[str, nn.Module]:
    """The networks whose weights a step updates."""
    networks = {"generator": state.generator}
    if state.adversary is not None:
        networks["discriminator"] = state.adversary.discriminator
    return networks


def make_batch(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A seeded batch in [0, 1]: LR [size 3 32 32] is the average of HR [size 3 128 128]."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(size, 3, HR_SIZE // SCALE, HR_SIZE // SCALE, generator=generator)
    fine = torch.rand(size, 3, HR_SIZE, HR_SIZE, generator=generator)
    hr = 0.8 * torch.nn.functional.interpolate(low, scale_factor=SCALE) + 0.2 * fine
    lr = torch.nn.functional.avg_pool2d(hr, SCALE)
    layout = torch.channels_last
    return lr.to(device, memory_format=layout), hr.to(device, memory_format=layout)


def format_result(result: Train) -> Iterator[str]:
    """The result as lines of text."""
    yield f"{result.machine.device}, {result.machine.threads} threads"
    for stage in [*result.stages.values(), *result.more]:
        yield ""
        yield (
            f"stage {stage.stage}, batch {stage.batch}, {'bf16' if stage.bf16 else 'fp32'}:"
            f" {stage.gflop_per_pair:.2f} GFLOP per pair; matrix product"
            f" {stage.product_tflops:.3g} TFLOP/s; {stage.agreement}"
        )
        yield f"  {'':<22}{'ms p10':>9}{'p50':>9}{'p90':>9}{'patches/s':>11}{'of floor':>10}{'MiB':>8}"
        for row in stage.rows:
            memory = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
            yield (
                f"  {row.name:<22}{row.ms_p10:>9.1f}{row.ms_p50:>9.1f}{row.ms_p90:>9.1f}"
                f"{row.patches_per_s:>11.1f}{row.floor_fraction:>10.1%}{memory:>8}"
            )
        if stage.speedup_over_peer is not None and stage.speedup_interval is not None:
            low, high = stage.speedup_interval
            yield (
                f"  speed of {stage.implementation} over {stage.peer}, the fastest peer:"
                f" {stage.speedup_over_peer:.2f} ({low:.2f} to {high:.2f})"
            )
            others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in stage.speedup_over.items())
            yield f"  over each row: {others}"
        if stage.data_wait_fraction is not None:
            yield f"  waiting for data: {stage.data_wait_fraction:.1%} of the time"
