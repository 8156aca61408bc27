"""Pipeline: photos to LR/HR patch pairs in tar shards, `prep-shards`.

photos/     selection of photos
patches/    extraction of the patch pairs of one photo
execution/  worker processes and clusters
stages/     extraction, plan, packing, upload; a killed run resumes
options     options that decide the bytes of a data set
job         one call of the command
forecast    `--dry-run`: size and time, from a sample of the photos
doctor      `--doctor`: whether this installation is complete and fast
printing    results as text
cli         `prep-shards`
"""
