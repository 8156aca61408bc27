"""Settings of `speed.*` by name, for `bench-sr train --impl`.

Each value has a test against the plain form; `trainer.training.speed_settings` resolves "auto", and
`trainer.training.acceleration` applies the settings.
"""

from __future__ import annotations

from trainer.config.schema import AUTO, SpeedConfig

PLAIN = SpeedConfig(
    dense="plain",
    compile="none",
    graph="none",
    content="fp32",
    allocator="system",
    convolutions="fastest",
)
IMPLEMENTATIONS: dict[str, SpeedConfig] = {
    AUTO: SpeedConfig(),
    "plain": PLAIN,
    "fused": SpeedConfig(dense="fused", graph="none"),
    "compile": SpeedConfig(dense="plain", compile="blocks", graph="none"),
    "graph": SpeedConfig(dense="plain", graph="step"),
    "graph-fused": SpeedConfig(dense="fused", graph="step"),
    "graph-compile": SpeedConfig(dense="plain", compile="blocks", graph="step"),
}
