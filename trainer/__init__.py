"""The trainer: shards in, super-resolution models out.

config/ device: settings and device of a run
networks/ kernels/ models: networks, their GPU kernels, networks from a configuration
data/ distributed/: batches from shards, several processes
losses/ perceptual/: losses of both stages, LPIPS and DISTS
weights/ upscaling/ evaluation/: weights files, tiled upscaling, scores on test sets
training/ runs/ reporting/: one step, a whole run, its report page
api bench/ cli/: the Python API, `bench-sr`, the commands
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Generator, load_generator, score
    from trainer.evaluation.metrics import Scores

__all__ = ["Generator", "Scores", "load_generator", "score"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer import api  # imports torch

    return getattr(api, name)
