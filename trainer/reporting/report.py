"""A run as one self-contained page: the paper's figures, samples, settings. The page loads nothing from a network.

It also shows `evaluation.json` (the output of `eval-sr --json`) and the comparison sheets of `strips/`
(`eval-sr --strips RUN/strips`), where they lie in the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from shards.errors import UsageError, UsrganError
from shards.io import atomic
from trainer.config.schema import STAGES
from trainer.reporting import charts
from trainer.reporting.figures import Figure, build_run_figures, build_stage_figures
from trainer.reporting.page_pictures import Comparison, show_photos, show_samples
from trainer.reporting.page_tables import (
    describe_run,
    deviations_table,
    evaluation_table,
    overview_table,
    read_evaluation,
)
from trainer.reporting.run_folder import read_metrics

Rows = list[dict[str, Any]]
STAGE_TITLES = {
    "psnr": "Stage psnr: pixel loss",
    "gan": "Stage gan: pixel, content and adversarial loss",
}
SHARE_OF_TIME = 0.02
"""Largest part of the training time that the page may take."""
FIRST_GUESS = 1.0
"""Assumed cost of the first page, in seconds: short runs write none while they train."""


class Chart(NamedTuple):
    """A drawn figure."""

    svg: Markup
    caption: str


class Section(NamedTuple):
    """The charts of the run or of one stage."""

    title: str
    charts: Sequence[Chart]
    hint: str
    """Advice where charts cannot be drawn."""
    samples: Comparison | None


def write_report(run: Path, *, figures: bool = True) -> Path:
    """Write `RUN/report.html` from the files of the run folder, and with `figures` also `RUN/figures/`.

    Raises:
        UsageError: the folder holds no run.
    """
    if not (run / "config.toml").is_file():
        raise UsageError(
            f"{run}: not a run folder (no config.toml); name a folder that train-sr wrote"
        )
    rows = read_metrics(run)
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    stage_figures = {stage: build_stage_figures(rows, stage) for stage in stages}
    run_figures = build_run_figures(rows)
    photos, more_photos = show_photos(run)
    evaluation = read_evaluation(run)
    sections = [
        _section("The run", run_figures, None),
        *(
            _section(STAGE_TITLES[stage], stage_figures[stage], show_samples(run, stage))
            for stage in stages
        ),
    ]
    page = _template().render(
        name=run.resolve().name,
        about=describe_run(run),
        overview=overview_table(rows, stages),
        evaluation=evaluation_table(evaluation),
        protocol=evaluation.get("protocol", ""),
        photos=photos,
        more_photos=more_photos,
        sections=[section for section in sections if section],
        deviations=deviations_table(run / "config.toml", stages),
        config=(run / "config.toml").read_text(errors="replace"),
        colors={"paper": charts.PAPER, "ink": charts.INK, "grid": charts.GRID},
    )
    path = run / "report.html"
    atomic.write_file(path, page.encode(errors="backslashreplace"))
    if figures and charts.is_available():
        every = [*run_figures, *(each for own in stage_figures.values() for each in own)]
        _write_figures(run / "figures", every)
    return path


class LiveReport:
    """Keeps the page of a training run current, for a small part of the training time."""

    def __init__(self, run: Path, *, warn: Callable[[str], None]) -> None:
        self._run = run
        self._warn = warn
        self._started = time.monotonic()
        self._spent = 0.0
        self._last = FIRST_GUESS
        self._warned = False

    def refresh(self) -> None:
        """Rewrite the page if the time allows; warn once about an error."""
        begun = time.monotonic()
        if self._spent + self._last > SHARE_OF_TIME * (begun - self._started):
            return
        try:
            write_report(self._run, figures=False)
        except (UsrganError, ValueError) as error:  # ValueError: what vl-convert raises
            if not self._warned:
                self._warn(
                    f"{self._run / 'report.html'}: not written ({error}); training continues"
                )
            self._warned = True
        self._last = time.monotonic() - begun
        self._spent += self._last


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def _section(title: str, figures: list[Figure], samples: Comparison | None) -> Section | None:
    if not figures and not samples:
        return None
    if figures and not charts.is_available():
        return Section(title, (), charts.INSTALL_HINT, samples)
    drawn = [Chart(Markup(charts.draw_svg(figure)), figure.caption) for figure in figures]  # noqa: S704  our own SVG
    return Section(title, drawn, "", samples)


def _write_figures(folder: Path, figures: list[Figure]) -> None:
    """Write each figure as SVG and PNG."""
    for name, content in _draw(figures):
        atomic.make_folder(folder)
        atomic.write_file(folder / name, content)


def _draw(figures: list[Figure]) -> Iterator[tuple[str, bytes]]:
    for figure in figures:
        yield f"{figure.name}.svg", charts.draw_svg(figure).encode()
        yield f"{figure.name}.png", charts.draw_png(figure)
