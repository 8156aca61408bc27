"""Everything that a stage writes while it trains; rank 0 writes, and a temporarily full disk does not stop it."""

from __future__ import annotations

from pathlib import Path

from shards.errors import WriteFailed
from shards.format.png import RGB8
from shards.version import __version__
from trainer.config.settings import flatten
from trainer.reporting.report import LiveReport
from trainer.reporting.run_folder import append_metrics, read_metrics
from trainer.reporting.run_folder import write_sample as write_sample_file
from trainer.runs.checkpoint import best_file, final_file, save_last, save_weights
from trainer.runs.session import StageSession
from trainer.training.state import TrainState, network_tensors

FAILURES = 3
"""Failed checkpoints in a row that end the run."""
Row = dict[str, float | int | str]


class RunWriter:
    """Writes into the run folder; on ranks other than 0 it does nothing."""

    def __init__(self, job: StageSession) -> None:
        self._job = job
        self._failures = 0
        self._rows: list[Row] = []
        self._report = LiveReport(job.run, warn=job.warn)

    def save(self, state: TrainState, *, must: bool) -> bool:
        """Save `last` and return whether that succeeded. `must` says that no later attempt follows.

        Raises:
            WriteFailed: the write failed and `must` is set, or it failed FAILURES times in a row.
            UsrganError: the ranks hold different weights.
        """
        job = self._job
        job.ranks.check_equal(network_tensors(state), what=str(job.run))
        if not job.ranks.is_main:
            return True
        try:
            save_last(
                job.run, state, job.config, dataset_sha256=job.dataset.manifest.dataset_sha256
            )
        except WriteFailed as error:
            self._failures += 1
            if must or self._failures >= FAILURES:
                raise
            job.warn(
                f"{_problem(error)}; checkpoint at {state.progress.patches_seen:,} patches not saved,"
                f" the one before is intact; training continues and retries at the next"
                f" (failure {self._failures} of {FAILURES} in a row)"
            )
            return False
        self._failures = 0
        return True

    def log(self, row: Row) -> None:
        """Append a row to the log, after rows whose write failed; refresh the report after a validation."""
        if not self._job.ranks.is_main:
            return
        self._rows.append(row)
        try:
            while self._rows:
                append_metrics(self._job.run, self._rows[0])
                del self._rows[0]
        except WriteFailed as error:
            self._job.warn(f"{_problem(error)}; the row is written with the next one")
            return
        if "val_psnr_y" in row:
            self._report.refresh()

    def write_best(
        self, state: TrainState, metric: str, values: dict[str, float], found: dict[str, float]
    ) -> None:
        """Write the best weights by a metric, and store their `values` as the best."""
        path = best_file(self._job.run, metric, state.stage)
        if self._write(path, state, found):
            state.progress.best |= values

    def write_sample(self, state: TrainState, picture: RGB8) -> None:
        """Write a picture of held-out patches."""
        try:
            write_sample_file(
                self._job.run,
                stage=state.stage,
                patches_seen=state.progress.patches_seen,
                picture=picture,
            )
        except WriteFailed as error:
            self._job.warn(f"{_problem(error)}; this sample is skipped")

    def write_final(self, state: TrainState) -> None:
        """Write the weights at the end of the stage.

        Raises:
            WriteFailed: they cannot be written.
        """
        if self._job.ranks.is_main:
            path = final_file(self._job.run, state.stage)
            save_weights(path, state, metadata(self._job, state, self._measured(state)))

    def _measured(self, state: TrainState) -> dict[str, float]:
        """Return the validation of these weights from the log; empty without one."""
        here = (state.stage, state.progress.patches_seen)
        return {
            name.removeprefix("val_"): float(value)
            for row in (*read_metrics(self._job.run), *self._rows)
            if (row["stage"], row["patches_seen"]) == here
            for name, value in row.items()
            if name.startswith("val_")
        }

    def _write(self, path: Path, state: TrainState, found: dict[str, float]) -> bool:
        if not self._job.ranks.is_main:
            return True
        try:
            save_weights(path, state, metadata(self._job, state, found))
        except WriteFailed as error:
            self._job.warn(f"{_problem(error)}; the next better weights are written again")
            return False
        return True


def metadata(job: StageSession, state: TrainState, found: dict[str, float]) -> dict[str, str]:
    """Return the metadata of a weights file."""
    settings, adversary = flatten(job.config), state.adversary
    return {
        "architecture": settings["generator.architecture"],
        **{name: str(value) for name, value in settings.items() if name.startswith("generator.")},
        "scale": str(job.dataset.manifest.scale),
        "stage": state.stage,
        "preset": job.preset,
        "weights": "raw" if state.ema is None else "ema",
        "patches_seen": str(state.progress.patches_seen),
        **{f"val_{name}": f"{value:.4f}" for name, value in found.items()},
        **({"lpips": job.lpips.protocol} if job.lpips and "lpips" in found else {}),
        "content_features": "none" if adversary is None else job.config.content.features,
        "content_sha256": "" if adversary is None else adversary.content.digest,
        "dataset_sha256": job.dataset.manifest.dataset_sha256,
        "usrgan": __version__,
    }


def _problem(error: WriteFailed) -> str:
    """Return the problem without the advice, which suits a run that ended."""
    return str(error).partition(";")[0]
