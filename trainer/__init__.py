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
bench/        `bench-sr`
cli/          the commands
"""
