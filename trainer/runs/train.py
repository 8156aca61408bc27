"""A whole `train-sr`: checks, then the stages one after the other in one run folder, then the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from shards.io import atomic
from trainer.config.load import PAPER_PRESET, load_config
from trainer.config.schema import Stage
from trainer.data.loader import use_cache_dir
from trainer.device import explain_out_of_memory
from trainer.distributed.group_lifetime import open_process_group
from trainer.distributed.heartbeat import Heartbeat
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainer.reporting.report import write_report
from trainer.runs.checkpoint import deliverable_weights
from trainer.runs.preflight import CheckedRun, check_run, find_gan_start_if_needed
from trainer.runs.resume import load_same_run
from trainer.runs.session import RunRequest, StageSession, Terminal
from trainer.runs.stage import train_stage


def train(
    request: RunRequest,
    terminal: Terminal,
    *,
    dry_run: bool = False,
    ranks: ProcessGroup = SINGLE_PROCESS,
    heartbeat: Heartbeat | None = None,
) -> dict[str, Any]:
    """Train the stages of a request and return the result that `train-sr --json` prints.

    Of several ranks, rank 0 alone writes and prints; the others need no run folder.

    Raises:
        UsageError: an option, the data or the weights cannot be used; nothing was written.
        Stopped: the user stopped the run, after saving.
        UsrganError: the run cannot continue; its checkpoints are intact.
    """
    terminal = terminal if ranks.is_main else terminal.muted()

    # every check, before the first step
    checked = check_run(request, ranks=ranks, warn=terminal.warn)
    if dry_run:
        if ranks.is_main:
            _check_resume(checked, terminal)
        return {"run": str(request.run), "stages": [], "device": str(checked.device)}

    # stages
    folder = _open_run_folder(request.run) if ranks.is_main else nullcontext()
    with folder, open_process_group(ranks, heartbeat, checked.device):
        ranks.check_same_args(checked.same_args)
        stages = [_train_stage(stage, checked, terminal, ranks) for stage in request.stages]
        report = write_report(request.run) if ranks.is_main else None

    # result
    last, config = list(request.stages.items())[-1]
    weights = deliverable_weights(
        request.run, last, best_by=config.validation.best_by, warn=terminal.warn
    )
    return {
        "run": str(request.run),
        "stages": stages,
        "dataset_sha256": checked.dataset.manifest.dataset_sha256,
        "weights": str(weights),
        "report": str(report),
    }


def _check_resume(checked: CheckedRun, terminal: Terminal) -> None:
    """Check that the run folder can be resumed with the request."""
    sha256 = checked.dataset.manifest.dataset_sha256
    for stage, config in checked.request.stages.items():
        load_same_run(checked.request.run, stage, config, dataset_sha256=sha256, warn=terminal.warn)


def _train_stage(
    stage: Stage, checked: CheckedRun, terminal: Terminal, ranks: ProcessGroup
) -> dict[str, Any]:
    """Train one stage to its end and return its part of the result."""
    request, device = checked.request, checked.device
    config = request.stages[stage]
    init = request.init if ranks.is_main else None
    if ranks.is_main and stage == "gan":
        given = None if "psnr" in request.stages else request.init
        init = find_gan_start_if_needed(request.run, given, terminal.warn)
    session = StageSession(
        run=request.run,
        stage=stage,
        config=config,
        preset=request.preset,
        paper=load_config(PAPER_PRESET, stage=stage),
        dataset=use_cache_dir(checked.dataset, config.data),
        device=device,
        ranks=ranks,
        init=init,
        content_weights=request.content_weights,
        lpips=checked.lpips,
        say=terminal.say,
        warn=terminal.warn,
        progress=terminal.progress,
        stop_requested=terminal.stop_requested,
    )
    fix = "use a smaller batch_size; the checkpoints are intact"
    if device.type == "cuda":
        fix = (
            "use a smaller batch_size, or speed.graph=none, which needs half the memory;"
            " the checkpoints are intact"
        )
    with explain_out_of_memory(str(request.run), fix=fix):
        state = train_stage(session)
    result = {
        "stage": stage,
        "patches_seen": state.progress.patches_seen,
        "best": dict(state.progress.best),
    }
    del state
    torch.cuda.empty_cache()
    return result


@contextlib.contextmanager
def _open_run_folder(run: Path) -> Iterator[None]:
    """Lock the run folder for this process and remove temporary files of a killed one."""
    with atomic.locked(run, holder="train-sr"):
        for folder in (run, run / "samples", *(run / "checkpoints").glob("*")):
            atomic.sweep_temps(folder)
        yield
