"""The trainer: shards in, super-resolution models out.

config      the settings of a run: frozen structs
settings    presets, TOML and `--set` into them; presets lie in `configs/`
loop        one stage from wherever it stands to its end
steps       the gradients of the two stages, `psnr` and `gan`
update      a step of all ranks, taken whole or not at all
ways        ways to the same step, by name
speed       how a step is made fast, and nothing about what it computes
tuned       which way of a step is the fastest on this machine
graph       a step as one CUDA graph
flat        many small tensors as views of one
state       everything that must survive a restart
job, start  a stage as it was asked for, and where it begins
guard       losses that are not finite: skip, roll back, stop
keeper      what is written while training
ranks       the processes of a job, and what they do together
store       where all of them can look
watch       how they learn of each other's death
launch      `--gpus N`: starts them
checkpoint  `last` and the best generators on disk
best        which weights are the best
order       which sample stands where: lanes of chunks, a function of data, seed and step
loading     bytes, patches and batches of the places of a step
cache       decoded patches kept in memory or on the device
data        batches out of shards, read ahead and decoded by threads
losses      eq. 1 and 5 of the paper
content     eq. 2: features of VGG-19
adversarial eq. 3 and 4, and four other kinds
telemetry   who pulls at the generator, and how hard
optim       Adam, schedules, weight averaging
models      which networks a configuration asks for
networks/   three generators, three discriminators, VGG-19 features
weights     safetensors in and out
describe    what a file of weights is
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
