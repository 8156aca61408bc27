"""The trainer: shards in, super-resolution models out.

config      TOML → frozen structs; presets lie in `configs/`
loop        one stage from wherever it stands to its end
steps       the two training steps, `psnr` and `gan`
state       everything that must survive a restart
checkpoint  `last` and the best generators on disk
order       which sample stands where: lanes of chunks, a function of data, seed and step
loading     bytes, patches and batches of the places of a step
cache       decoded patches kept in memory or on the device
data        batches out of shards, read ahead and decoded by threads
losses      eq. 1 to 5 of the paper
optim       Adam, schedules, weight averaging
models      which networks a configuration asks for
networks/   RRDBNet, VGG discriminator, VGG-19 features
weights     safetensors in and out
validate    PSNR/SSIM over held-out patches
metrics     PSNR and SSIM as the field's papers measure them
evaluate    `eval-sr`: models and bicubic on image sets
tiles       large images in overlapping tiles
upscale     `upscale-sr`: files and folders
run         the run folder
report      the run as one page
bench/      `bench-sr`: speed beside a floor and a peer
cli/        the commands
"""
