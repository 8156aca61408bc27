"""Pipeline: photos to LR/HR patch pairs in tar shards, `prep-shards`.

photos/     which photos there are, and which are refused
patches/    one photo to its patch pairs
execution/  worker processes and clusters
stages/     cut, plan, pack, publish; resumes where a killed run stopped
options     options that decide the bytes of a data set, checked
job         one run as it was asked for
forecast    `--dry-run`: size and time from a few photos
doctor      `--doctor`: whether this installation is complete and fast
printing    results for people
cli         `prep-shards`
"""
