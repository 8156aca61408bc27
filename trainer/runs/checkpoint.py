"""Checkpoints: `last`, which holds everything to go on, and the best generators.

    checkpoints/last/gan-000000473600.safetensors       all of `state`, the newest `keep` of each stage
    checkpoints/best-psnr_y/gan.safetensors             a bare generator per metric and stage
    checkpoints/final/gan.safetensors                   the generator at the end of a stage

One file is one checkpoint, written aside and renamed, with a digest of its content inside: it is
either whole or not there, and a damaged one is passed over for the one before it.
"""

from __future__ import annotations

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
from trainer.training.state import TrainState, state_tensors
from trainer.weights.safetensors_io import load_tensors, save_tensors


class Position(msgspec.Struct, frozen=True):
    """Where a checkpoint stands, and what it belongs to."""

    stage: str
    patches_seen: int
    best: dict[str, float]
    dataset_sha256: str
    config: dict[str, str | int | float | bool | list[float]]
    """Every setting by its dotted name."""
    skipped_patches: int = msgspec.field(name="passed_over", default=0)
    """Stored under the name that checkpoints have had from the start, as the next one."""
    consecutive_skips: int = msgspec.field(name="bad_in_a_row", default=0)
    rollbacks: int = 0
    start_psnr_y: float = 0.0
    speed: dict[str, str] = {}
    """See `TrainState`."""
    version: str = __version__
    order: int = 1
    """Of the batches: `trainer.data.sampler.ORDER_VERSION`."""

    @classmethod
    def of(
        cls,
        state: TrainState,
        *,
        dataset_sha256: str,
        config: dict[str, str | int | float | bool | list[float]],
    ) -> Position:
        """Where a state stands."""
        return cls(
            stage=state.stage,
            patches_seen=state.patches_seen,
            best=dict(state.best),
            dataset_sha256=dataset_sha256,
            config=config,
            skipped_patches=state.skipped_patches,
            consecutive_skips=state.consecutive_skips,
            rollbacks=state.rollbacks,
            start_psnr_y=state.start_psnr_y,
            speed=dict(state.speed),
            order=ORDER_VERSION,
        )


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
    """The weights that a stage hands on: the best by a metric, else the final ones; None if there are none."""
    final = final_file(run, stage)
    best = [best_file(run, metric, stage) for metric in deliverable_metrics(best_by, stage)]
    for path in (each for each in best if each.is_file()):
        try:
            load_tensors(path)
        except DamagedData as error:
            if not final.is_file():
                raise
            warn(f"{error}; the final weights of stage {stage} are taken instead")
            return final
        return path
    return final if final.is_file() else None


def save_last(run: Path, state: TrainState, config: Config, *, dataset_sha256: str) -> Path:
    """Write everything to go on from here, then drop what is older than the newest `keep`."""
    position = Position.of(state, dataset_sha256=dataset_sha256, config=flatten(config))
    folder = last_folder(run)
    atomic.make_folder(folder)
    path = folder / f"{state.stage}-{state.patches_seen:012d}.safetensors"
    save_tensors(path, state_tensors(state), {"position": msgspec.json.encode(position).decode()})
    saved = _saved(run, state.stage)  # damaged ones that were passed over may stand before `path`
    for old in saved[saved.index(path) + max(config.checkpoint.keep, 1) :]:
        atomic.remove_file(old)
    return path


def load_last(
    run: Path, stage: Stage, *, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], Position] | None:
    """The newest whole checkpoint of a stage; None if the stage has none at all.

    Raises:
        DamagedData: there are checkpoints, and none of them can be read.
    """
    saved = _saved(run, stage)
    for path in saved:
        loaded = _load(path, warn=warn)
        if loaded is not None:
            return loaded
    if saved:
        raise DamagedData(
            f"{last_folder(run)}: none of its {len(saved)} checkpoints of stage {stage} can be read;"
            " restore one, or start anew with another --out"
        )
    return None


def load_good(
    run: Path, stage: Stage, *, suspect: int | None, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], Position] | None:
    """The checkpoint to return to when losses are not finite any more; None: start anew.

    That is the newest whole one saved outside a row of bad steps; but if the newest is the `suspect`
    (by its patches), to which the run returned last, the one before it, if there is one.
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
    """Remove the checkpoints of a stage that lie ahead of where the run goes on."""
    for path in _saved(run, stage):
        if int(path.stem.rpartition("-")[2]) > patches_seen:
            atomic.remove_file(path)


def has_last(run: Path, stage: Stage) -> bool:
    """Whether a stage has been begun."""
    return bool(_saved(run, stage))


def check_same_run(position: Position, config: Config, *, run: Path, dataset_sha256: str) -> None:
    """Refuse to go on with other data or other settings than the checkpoint was made with.

    Raises:
        UsageError: names what differs.
    """
    if position.dataset_sha256 != dataset_sha256:
        raise UsageError(
            f"{run}: was trained on data set {position.dataset_sha256[:12]}, --shards is"
            f" {dataset_sha256[:12]}; name those shards, or another --out"
        )
    if position.order != ORDER_VERSION:
        raise UsageError(
            f"{run}: was trained by usrgan {position.version}, whose batches came in another order;"
            f" {_another_run(run, position)}"
        )
    usual = flatten(Config())
    for name, now in flatten(config).items():
        before = position.config.get(name, usual[name])
        if before == now or may_change_on_resume(name, config):
            continue
        if name not in position.config:
            raise UsageError(
                f"{run}: was trained by usrgan {position.version}, which had no {name} and did as {before} does,"
                f" now it is {now}; {_another_run(run, position)}"
            )
        raise UsageError(
            f"{run}: was trained with {name} = {before}, now it is {now};"
            " use the same settings, or another --out"
        )


def _another_run(run: Path, position: Position) -> str:
    """The way out where a run cannot go on."""
    return (
        "name another --out, and to keep what was learned"
        f" --init {run}/checkpoints/best-psnr_y/{position.stage}.safetensors"
    )


def save_weights(path: Path, state: TrainState, metadata: dict[str, str]) -> None:
    """Write the generator as it stands, ready for upscaling, to its `best_file` or `final_file`."""
    atomic.make_folder(path.parent)
    save_tensors(path, state.output.state_dict(), metadata)


def forget_lost_best(run: Path, state: TrainState, *, warn: Callable[[str], None]) -> None:
    """A best value whose weights are missing or damaged is no more to be beaten."""
    for metric in dict.fromkeys(name.split(".")[0] for name in state.best):
        try:
            load_tensors(best_file(run, metric, state.stage))
        except (DamagedData, UsageError) as error:
            warn(f"{str(error).partition(';')[0]}; the next validation counts as the best again")
            forget_metric(state.best, metric)


def _load(path: Path, *, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], Position] | None:
    """A checkpoint; None, and a word about it, if it cannot be read."""
    try:
        tensors, metadata = load_tensors(path)
        return tensors, msgspec.json.decode(metadata["position"], type=Position)
    except (DamagedData, UsageError, KeyError, msgspec.DecodeError) as error:  # or cannot be read
        warn(f"{str(error).partition(';')[0]}; going on from the checkpoint before it")
        return None


def _saved(run: Path, stage: str) -> list[Path]:
    """Checkpoints of a stage, newest first."""
    return sorted(last_folder(run).glob(f"{stage}-*.safetensors"), reverse=True)
