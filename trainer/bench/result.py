"""What `bench-sr train` found, for machines and for people."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trainer.bench.machine import Machine
from trainer.config.schema import Stage


class Row(msgspec.Struct, frozen=True):
    """One way of doing the step."""

    name: str
    ms_p10: float
    ms_p50: float
    ms_p90: float
    patches_per_s: float
    floor_fraction: float
    """The step's counted FLOP at the rate of a matrix product of the same rounds, over the median."""
    operations: int
    """Kernels on a GPU, operations of ATen that touch data on a CPU."""
    peak_mib: float | None
    """GPU memory while it runs, with what all the others hold; of a captured step what lies outside its graph."""


class StageResult(msgspec.Struct, frozen=True):
    """A stage at one batch size; the headline is the first implementation asked for."""

    stage: Stage
    batch: int
    bf16: bool
    gflop_per_pair: float
    implementation: str
    settings: dict[str, str]
    patches_per_s: float
    floor_fraction: float
    speedup_over_peer: float | None
    """Over the fastest row of the peer; None where outputs disagree or no peer ran."""
    speedup_interval: tuple[float, float] | None
    """95 %, by bootstrap over the steps."""
    peer: str | None
    speedup_over: dict[str, float]
    """Over every other row."""
    data_wait_fraction: float | None
    """None without --shards."""
    agreement: str
    """What was compared before anything was timed."""
    rows: list[Row]
    rounds: int


class Train(msgspec.Struct, frozen=True):
    """What `bench-sr train --json` prints."""

    stages: dict[str, StageResult]
    """By stage, at the first batch size."""
    more: list[StageResult]
    """The other batch sizes."""
    machine: Machine
    command: str


def lines(found: Train) -> Iterator[str]:
    """The result for a person."""
    machine = found.machine
    yield (
        f"{machine.device}: matrix product {machine.bf16_tflops:.3g} TFLOP/s in bf16,"
        f" {machine.fp32_tflops:.3g} in fp32; copy {machine.copy_gb_per_s:.3g} GB/s;"
        f" an operation {machine.launch_us:.1f} µs"
    )
    for stage in [*found.stages.values(), *found.more]:
        yield from _stage_lines(stage)


def _stage_lines(found: StageResult) -> Iterator[str]:
    yield ""
    yield (
        f"stage {found.stage}, batch {found.batch}, {'bf16' if found.bf16 else 'fp32'}:"
        f" {found.gflop_per_pair:.2f} GFLOP a pair; {found.agreement}"
    )
    yield f"  {'':<22}{'ms p10':>9}{'p50':>9}{'p90':>9}{'patches/s':>11}{'of floor':>10}{'operations':>12}{'MiB':>8}"
    for row in found.rows:
        memory = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        yield (
            f"  {row.name:<22}{row.ms_p10:>9.1f}{row.ms_p50:>9.1f}{row.ms_p90:>9.1f}"
            f"{row.patches_per_s:>11.1f}{row.floor_fraction:>10.1%}{row.operations:>12}{memory:>8}"
        )
    if found.speedup_over_peer is not None and found.speedup_interval is not None:
        low, high = found.speedup_interval
        yield (
            f"  {found.implementation} over {found.peer}, the fastest of the peer's:"
            f" {found.speedup_over_peer:.2f} ({low:.2f} to {high:.2f})"
        )
        others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.speedup_over.items())
        yield f"  over each row: {others}"
    if found.data_wait_fraction is not None:
        yield f"  waiting for data: {found.data_wait_fraction:.1%} of the time"
