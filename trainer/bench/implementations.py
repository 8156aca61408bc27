"""The ways to one and the same training step, by their settings and by name.

    dense      dense blocks as modules, or in Triton kernels (`networks.fused`)
    compile    torch.compile of each RRDB; the 23 of them share one compilation
    graph      the whole step as one CUDA graph (`trainer.training.cuda_graph`)
    content    the frozen VGG-19's weights kept in bf16, which autocast would make of them in every step
    allocator  freed memory kept for the next step instead of being returned to the system
    convolutions  on a GPU: cuDNN tries its algorithms on each shape; which wins may differ from start to start, so
               "first" is for runs that have to repeat to the bit

Each has a test against the plain way; `trainer.training.speed_settings` takes them.
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
