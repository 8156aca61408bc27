"""Settings of acceleration: how a step is computed, and nothing about what it computes.

Each value has a test against the plain form;
`trainer.training.speed_settings` resolves "auto", `trainer.training.acceleration` applies them.
"""

from __future__ import annotations

from trainer.config.schema import SpeedConfig

PLAIN = SpeedConfig(
    dense="plain",
    compile="none",
    graph="none",
    content="fp32",
    allocator="system",
    convolutions="fastest",
)
IMPLEMENTATIONS: dict[str, SpeedConfig] = {
    "auto": SpeedConfig(),
    "plain": PLAIN,
    "fused": SpeedConfig(dense="fused", graph="none"),
    "compile": SpeedConfig(dense="plain", compile="blocks", graph="none"),
    "graph": SpeedConfig(dense="plain", graph="step"),
    "graph-fused": SpeedConfig(dense="fused", graph="step"),
    "graph-compile": SpeedConfig(dense="plain", compile="blocks", graph="step"),
}
"""The rungs of the ladder by name, for `bench-sr train --impl`; "auto" is what `train-sr` takes."""
