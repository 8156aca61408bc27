"""What a stage writes while it trains. Rank 0 alone does, and a disk that is full for a while stops nothing."""

from __future__ import annotations

from pathlib import Path

from shards.errors import WriteFailed
from shards.format.png import RGB8
from shards.version import __version__
from trainer.config.settings import flatten
from trainer.reporting.report import LiveReport
from trainer.reporting.run_folder import append_metrics, read_metrics, write_sample
from trainer.runs.checkpoint import best_file, final_file, save_last, save_weights
from trainer.runs.session import StageSession
from trainer.training.state import TrainState, network_tensors

FAILURES = 3
"""Checkpoints in a row that cannot be saved before the run is given up."""
Row = dict[str, float | int | str]


class RunWriter:
    """Writes into the run folder; on other ranks than the first it does nothing."""

    def __init__(self, job: StageSession) -> None:
        self._job = job
        self._failures = 0
        self._rows: list[Row] = []
        self._report = LiveReport(job.run, warn=job.warn)

    def save(self, state: TrainState, *, must: bool) -> bool:
        """Save `last`; whether it was. With `must` there is no later try.

        Raises:
            WriteFailed: it cannot be written, and must be, or could not the last times either.
            UsrganError: the ranks do not hold the same networks.
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
                f"{_what(error)}; not saved at {state.patches_seen:,} patches, the checkpoint before is intact:"
                f" training goes on and tries again at the next (failure {self._failures} of {FAILURES} in a row)"
            )
            return False
        self._failures = 0
        return True

    def log(self, row: Row) -> None:
        """Add a row to the log, after those that could not be written before; with a validation, to the page."""
        if not self._job.ranks.is_main:
            return
        self._rows.append(row)
        try:
            while self._rows:
                append_metrics(self._job.run, self._rows[0])
                del self._rows[0]
        except WriteFailed as error:
            self._job.warn(f"{_what(error)}; the row is kept and written with the next")
            return
        if "val_psnr_y" in row:
            self._report.refresh()

    def best(
        self, state: TrainState, metric: str, values: dict[str, float], found: dict[str, float]
    ) -> None:
        """Keep the weights that are the best by a metric, and remember the `values` to be beaten."""
        path = best_file(self._job.run, metric, state.stage)
        if self._write(path, state, found):
            state.best |= values

    def sample(self, state: TrainState, picture: RGB8) -> None:
        """Keep a strip of held-out patches."""
        try:
            write_sample(
                self._job.run, stage=state.stage, patches_seen=state.patches_seen, picture=picture
            )
        except WriteFailed as error:
            self._job.warn(f"{_what(error)}; this sample is left out")

    def final(self, state: TrainState) -> None:
        """Keep the weights at the end of the stage.

        Raises:
            WriteFailed: they cannot be written.
        """
        if self._job.ranks.is_main:
            path = final_file(self._job.run, state.stage)
            save_weights(path, state, metadata(self._job, state, self._measured(state)))

    def _measured(self, state: TrainState) -> dict[str, float]:
        """What the validation of these weights found, as the log tells; nothing where there was none."""
        here = (state.stage, state.patches_seen)
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
            self._job.warn(f"{_what(error)}; the next better weights are tried again")
            return False
        return True


def metadata(job: StageSession, state: TrainState, found: dict[str, float]) -> dict[str, str]:
    """What weights say of themselves."""
    settings, adversary = flatten(job.config), state.adversary
    return {
        "architecture": settings["generator.architecture"],
        **{name: str(value) for name, value in settings.items() if name.startswith("generator.")},
        "scale": str(job.dataset.manifest.scale),
        "stage": state.stage,
        "preset": job.preset,
        "weights": "raw" if state.ema is None else "ema",
        "patches_seen": str(state.patches_seen),
        **{f"val_{name}": f"{value:.4f}" for name, value in found.items()},
        **({"lpips": job.lpips.protocol} if job.lpips and "lpips" in found else {}),
        "content_features": "none" if adversary is None else job.config.content.features,
        "content_sha256": "" if adversary is None else adversary.content.digest,
        "dataset_sha256": job.dataset.manifest.dataset_sha256,
        "usrgan": __version__,
    }


def _what(error: WriteFailed) -> str:
    """The matter without the advice, which is for a run that ended."""
    return str(error).partition(";")[0]
