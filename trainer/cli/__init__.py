"""The trainer's commands. Modules that need torch are imported when a command runs, not for its help.

train        `train-sr`
evaluate     `eval-sr`
upscale      `upscale-sr`
bench        `bench-sr`; bench_train: `bench-sr train`; bench_output: printing and saving of results
later        `export-sr`, not built yet
"""

from trainer.cli.bench import bench_main
from trainer.cli.evaluate import eval_main
from trainer.cli.later import export_main
from trainer.cli.train import train_main
from trainer.cli.upscale import upscale_main

__all__ = ["bench_main", "eval_main", "export_main", "train_main", "upscale_main"]
