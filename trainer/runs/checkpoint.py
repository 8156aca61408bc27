"""Checkpoints: `last`, which holds everything to resume from, and the best generators.

    checkpoints/last/gan-000000473600.safetensors       all of `state`, the newest `keep` of each stage
    checkpoints/best-psnr_y/gan.safetensors             a bare generator per metric and stage
    checkpoints/final/gan.safetensors                   the generator at the end of a stage

One file is one checkpoint, written under a temporary name and renamed, with a digest of its content: it is complete or
absent. A damaged one is skipped and the one before it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import Tensor

from shards.errors import DamagedData, UsageError
from shards.io import atomic
from shards.version import __version__
from trainer.config.schema import BestBy, Config, Stage
from trainer.config.settings import flatten, may_change_on_resume
from trainer.data.sampler import ORDER_VERSION
from trainer.runs.best import deliverable_metrics, forget_metric
from trainer.training.state import Progress, TrainState, state_tensors
from trainer.weights.safetensors_io import load_tensors, save_tensors


class Position(Progress, kw_only=True):
    """The record of a checkpoint: the progress of a stage, and the run that it belongs to."""

    stage: str
    dataset_sha256: str
    config: dict[str, str | int | float | bool | list[float]]
    """Every setting by its dotted name."""
    version: str = __version__
    order: int = 1
    """Version of the patch order: `trainer.data.sampler.ORDER_VERSION`."""

    @classmethod
    def of(cls, state: TrainState, config: Config, *, dataset_sha256: str) -> Position:
        """Return the record of a state."""
        return cls(
            **msgspec.structs.asdict(state.progress),
            stage=state.stage,
            dataset_sha256=dataset_sha256,
            config=flatten(config),
            order=ORDER_VERSION,
        )

    def progress(self) -> Progress:
        """Return the progress alone."""
        values = {name: getattr(self, name) for name in Progress.__struct_fields__}
        return copy.deepcopy(Progress(**values))


def last_folder(run: Path) -> Path:
    """`RUN/checkpoints/last`."""
    return run / "checkpoints" / "last"


def best_file(run: Path, metric: str, stage: Stage) -> Path:
    """`RUN/checkpoints/best-METRIC/STAGE.safetensors`."""
    return run / "checkpoints" / f"best-{metric}" / f"{stage}.safetensors"


def final_file(run: Path, stage: Stage) -> Path:
    """`RUN/checkpoints/final/STAGE.safetensors`."""
    return run / "checkpoints" / "final" / f"{stage}.safetensors"


def deliverable_weights(
    run: Path, stage: Stage, *, best_by: BestBy, warn: Callable[[str], None]
) -> Path | None:
    """Return the weights that a stage delivers: the best by a metric, else the final ones; None if there are none."""
    final = final_file(run, stage)
    best = [best_file(run, metric, stage) for metric in deliverable_metrics(best_by, stage)]
    for path in (each for each in best if each.is_file()):
        try:
            load_tensors(path)
        except DamagedData as error:
            if not final.is_file():
                raise
            warn(f"{error}; using the final weights of stage {stage} instead")
            return final
        return path
    return final if final.is_file() else None


def save_last(run: Path, state: TrainState, config: Config, *, dataset_sha256: str) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` of the stage."""
    position = Position.of(state, config, dataset_sha256=dataset_sha256)
    folder = last_folder(run)
    atomic.make_folder(folder)
    path = folder / f"{state.stage}-{state.progress.patches_seen:012d}.safetensors"
    save_tensors(path, state_tensors(state), {"position": msgspec.json.encode(position).decode()})
    saved = _saved(run, state.stage)  # a newer one is damaged
    for old in saved[saved.index(path) + max(config.checkpoint.keep, 1) :]:
        atomic.remove_file(old)
    return path


def load_last(
    run: Path, stage: Stage, *, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], Position] | None:
    """Return the newest intact checkpoint of a stage; None if the stage has none.

    Raises:
        DamagedData: the stage has checkpoints but none is readable.
    """
    saved = _saved(run, stage)
    for path in saved:
        loaded = _load(path, warn=warn)
        if loaded is not None:
            return loaded
    if saved:
        raise DamagedData(
            f"{last_folder(run)}: none of its {len(saved)} checkpoints of stage {stage} can be read;"
            " restore one, or start over with another --out"
        )
    return None


def load_good(
    run: Path, stage: Stage, *, suspect: int | None, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], Position] | None:
    """Return the checkpoint for a rollback; None starts the stage over.

    It is the newest intact checkpoint that was saved outside a series of skipped steps. If that is the `suspect`, the
    position in patches of the previous rollback, the one before it is returned, where one exists.
    """
    found: dict[int, tuple[dict[str, Tensor], Position]] = {}
    for path in _saved(run, stage):
        loaded = _load(path, warn=warn)
        if loaded is not None and not loaded[1].consecutive_skips:
            found[loaded[1].patches_seen] = loaded
            if loaded[1].patches_seen != suspect:
                break
    return found[min(found)] if found else None


def remove_checkpoints_after(run: Path, stage: Stage, patches_seen: int) -> None:
    """Remove the checkpoints of a stage beyond a position, in patches."""
    for path in _saved(run, stage):
        if int(path.stem.rpartition("-")[2]) > patches_seen:
            atomic.remove_file(path)


def has_last(run: Path, stage: Stage) -> bool:
    """Return whether a stage has a checkpoint to resume from."""
    return bool(_saved(run, stage))


def check_same_run(position: Position, config: Config, *, run: Path, dataset_sha256: str) -> None:
    """Check that a run resumes with the data and the settings of its checkpoint.

    Raises:
        UsageError: names what differs.
    """
    if position.dataset_sha256 != dataset_sha256:
        raise UsageError(
            f"{run}: was trained on data set {position.dataset_sha256[:12]}, --shards is"
            f" {dataset_sha256[:12]}; pass those shards, or another --out"
        )
    if position.order != ORDER_VERSION:
        raise UsageError(
            f"{run}: was trained by usrgan {position.version}, whose batches came in another order;"
            f" {_advise_new_run(run, position)}"
        )
    usual = flatten(Config())
    for name, now in flatten(config).items():
        before = position.config.get(name, usual[name])
        if before == now or may_change_on_resume(name, config):
            continue
        if name not in position.config:
            raise UsageError(
                f"{run}: was trained by usrgan {position.version}, which had no {name} and behaved as with {before};"
                f" now it is {now}; {_advise_new_run(run, position)}"
            )
        raise UsageError(
            f"{run}: was trained with {name} = {before}, now it is {now};"
            " use the same settings, or another --out"
        )


def _advise_new_run(run: Path, position: Position) -> str:
    """Return the advice for a run that cannot resume."""
    return (
        "use another --out and, to keep the weights,"
        f" --init {run}/checkpoints/best-psnr_y/{position.stage}.safetensors"
    )


def save_weights(path: Path, state: TrainState, metadata: dict[str, str]) -> None:
    """Write the generator, ready for upscaling, to its `best_file` or `final_file`."""
    atomic.make_folder(path.parent)
    save_tensors(path, state.output.state_dict(), metadata)


def forget_lost_best(run: Path, state: TrainState, *, warn: Callable[[str], None]) -> None:
    """Forget best values whose weights are missing or damaged."""
    for metric in dict.fromkeys(name.split(".")[0] for name in state.progress.best):
        try:
            load_tensors(best_file(run, metric, state.stage))
        except (DamagedData, UsageError) as error:
            warn(f"{str(error).partition(';')[0]}; the next validation becomes the best")
            forget_metric(state.progress.best, metric)


def _load(path: Path, *, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], Position] | None:
    """Return a checkpoint; warn and return None if it cannot be read."""
    try:
        tensors, metadata = load_tensors(path)
        return tensors, msgspec.json.decode(metadata["position"], type=Position)
    except (DamagedData, UsageError, KeyError, msgspec.DecodeError) as error:  # or cannot be read
        warn(f"{str(error).partition(';')[0]}; using the checkpoint before it")
        return None


def _saved(run: Path, stage: str) -> list[Path]:
    """Return the checkpoints of a stage, newest first."""
    return sorted(last_folder(run).glob(f"{stage}-*.safetensors"), reverse=True)
