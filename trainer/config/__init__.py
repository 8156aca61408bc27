"""Settings of a training run; no module here imports torch.

schema    every setting: type, default, bounds, description and policy, as frozen structs
load      presets, TOML files and `--set` into a configuration, with "did you mean"
write     a configuration as TOML with comments, and as the tables of docs/guide/config.md
paper     settings and patches that deviate from the paper
"""
