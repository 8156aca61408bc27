"""The trainer: shards in, super-resolution models out.

config/       settings of a run
networks/     generators, discriminators, feature extractors
kernels/      GPU kernels and their autograd functions
models        networks that a configuration asks for
data/         batches from shards
losses/       loss functions of both stages
training/     one step
runs/         a whole run, its checkpoints, its log
reporting/    run folder and report page
weights/      files of weights
perceptual/   LPIPS and DISTS
evaluation/   PSNR, SSIM, Table 1
upscaling/    picture files in tiles
distributed/  several processes
device        device, precision, out of memory
api           the Python API, handed out below
bench/        `bench-sr`
cli/          the commands
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Generator as Generator
    from trainer.api import load_generator as load_generator
    from trainer.api import score as score


def __getattr__(name: str) -> Any:  # noqa: ANN401  as the names have them
    if name in ("Generator", "load_generator", "score"):
        from trainer import api  # imports torch, so only on first use

        return getattr(api, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
