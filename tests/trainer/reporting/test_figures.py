"""The numbers behind the report's figures, and what is drawn of them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.trainer.reporting.support import make_metrics
from trainer.reporting import charts
from trainer.reporting.figures import (
    RAW,
    REACHED_FRACTIONS,
    SMOOTH,
    Figure,
    average_epochs,
    build_run_figures,
    build_stage_figures,
    find_balanced_epoch,
    find_reaching_epochs,
    select_series,
)

PAPERS = [f"figure-{number}" for number in (3, 4, 5, 6, 7)]


def everything(rows: list[dict]) -> list[Figure]:
    return [
        *build_run_figures(rows),
        *(each for stage in ("psnr", "gan") for each in build_stage_figures(rows, stage)),
    ]


def test_the_balanced_epoch_gives_up_neither_metric():
    points = [(1, 20.0, 0.5), (2, 30.0, 0.5), (3, 28.0, 0.78), (4, 20.0, 0.8), (5, 26.0, 0.79)]
    assert find_balanced_epoch(points) == 3  # .8 and .93 normalised; epoch 5: .6 and .97
    assert find_balanced_epoch([(7, 20.0, 0.5), (9, 30.0, 0.8)]) == 9
    assert find_balanced_epoch([(1, 20.0, 0.5), (2, 20.0, 0.8)]) is None
    assert find_balanced_epoch([]) is None


def test_of_equally_balanced_epochs_the_first_wins():
    points = [(1, 0.0, 0.0), (2, 5.0, 5.0), (3, 5.0, 5.0), (4, 10.0, 2.0), (5, 2.0, 10.0)]
    assert find_balanced_epoch(points) == 2
    points[2] = (3, 5.0, 6.0)
    assert find_balanced_epoch(points) == 3


def test_the_moving_average_is_the_mean_of_the_last_ten_epochs():
    values = np.random.default_rng(1).normal(size=40)
    found = average_epochs([(epoch, value) for epoch, value in enumerate(values, start=1)])
    for epoch in (1, 4, 10, 11, 40):
        assert found[epoch - 1][1] == pytest.approx(values[max(0, epoch - 10) : epoch].mean())
    assert average_epochs([(5, 1.0), (10, 3.0), (15, 8.0)]) == [(5, 1.0), (10, 2.0), (15, 5.5)]


def test_epochs_needed_are_the_first_that_reach_each_part_of_the_normalised_best():
    points = [(1, 10.0), (2, 17.1), (3, 16.0), (4, 19.0), (5, 20.0), (6, 19.9)]
    assert find_reaching_epochs(points) == {0.70: 2, 0.80: 4, 0.90: 4, 0.95: 5, 0.99: 5}
    assert find_reaching_epochs([(1, 3.0), (2, 3.0)]) == {}
    assert list(find_reaching_epochs(points)) == list(REACHED_FRACTIONS)


def test_a_whole_run_has_all_of_the_papers_figures():
    names = [
        figure.name for figure in everything(make_metrics("psnr", 40) + make_metrics("gan", 40))
    ]
    for paper in PAPERS:
        assert any(name.startswith(paper) for name in names), paper
    assert {"figure-5-psnr", "figure-5-gan", "figure-6-psnr", "figure-7-gan"} <= set(names)
    assert {"gradient-shares-gan", "gradient-norms-gan", "sigma-gan", "speed", "data-wait"} <= set(
        names
    )
    assert len(names) == len(set(names))


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 30])
@pytest.mark.parametrize("every", [1, 4, 100])
def test_no_figure_lacks_data(epochs, every):
    for stages in (("psnr",), ("gan",), ("psnr", "gan")):
        rows = [row for stage in stages for row in make_metrics(stage, epochs, every)]
        for figure in everything(rows):
            for name in {point.series for point in figure.points} if figure.mark == "line" else ():
                assert sum(point.series == name for point in figure.points) > 1, figure.name
            assert len(figure.points) > 1
            assert all(math.isfinite(point.y) for point in figure.points)
        if epochs < 2:
            assert everything(rows) == []


def test_what_is_no_number_is_left_out():
    rows = make_metrics("psnr", 4)
    rows[1]["val_psnr_y"], rows[2]["val_psnr_y"] = math.nan, "high"
    assert [epoch for epoch, _ in select_series(rows, "val_psnr_y")] == [1, 4]
    assert select_series([{"stage": "psnr", "epoch": None, "lr": 1.0}], "lr") == []


def test_a_loss_over_more_than_a_decade_is_drawn_logarithmically():
    figures = {figure.name: figure for figure in everything(make_metrics("gan", 60))}
    assert figures["figure-4-adversarial"].log
    assert not figures["figure-4-generator"].log


def test_one_stage_alone_needs_no_legend_and_two_are_told_apart():
    one = build_run_figures(make_metrics("psnr", 5))[0]
    two = build_run_figures(make_metrics("psnr", 5) + make_metrics("gan", 5))[0]
    assert {point.series for point in one.points} == {"stage psnr"}
    assert {point.series for point in two.points} == {"stage psnr", "stage gan"}
    assert "stage psnr" not in charts.draw_svg(one)
    assert "stage gan" in charts.draw_svg(two)


def test_a_stage_that_was_validated_once_is_a_point_beside_the_line_of_the_other():
    rows = [*make_metrics("psnr", 60), *make_metrics("gan", 4, every=4)]
    found = {figure.name: figure for figure in build_run_figures(rows)}["figure-3-psnr"]
    assert [point.x for point in found.points if point.series == "stage gan"] == [4.0]
    drawn = charts.draw_svg(found)
    assert "stage gan" in drawn
    assert drawn.count('aria-roledescription="point"') > 60
    assert "figure-3-psnr" not in {
        figure.name for figure in build_run_figures(make_metrics("gan", 4, every=4))
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Figure, str]]:
    figures = everything(make_metrics("psnr", 30) + make_metrics("gan", 30))
    wanted = ("figure-3-psnr", "figure-5-gan", "figure-6-gan", "figure-7-gan")
    return {each.name: (each, charts.draw_svg(each)) for each in figures if each.name in wanted}


def test_every_chart_names_its_axes_and_is_as_wide_as_a_phone(drawn):
    assert len(drawn) == 4
    for figure, svg in drawn.values():
        assert svg.startswith("<svg")
        for text in (figure.title, figure.x, figure.y):
            assert f">{text}<" in svg, figure.name
        assert int(re.search(r'width="(\d+)"', svg)[1]) <= 390 - 32


def test_the_star_and_the_bars_show_their_numbers(drawn):
    figure, svg = drawn["figure-6-gan"]
    assert sum(point.star for point in figure.points) == 1
    assert svg.count(charts.STAR) == 1
    figure, svg = drawn["figure-7-gan"]
    for point in figure.points:
        assert f">{point.y:g}<" in svg
    figure, svg = drawn["figure-5-gan"]
    assert {point.series for point in figure.points} == {RAW, SMOOTH}


def test_the_colours_of_few_epochs_are_named_once_each_up_to_the_stars():
    figures = everything(make_metrics("psnr", 4))
    (figure,) = (each for each in figures if each.name == "figure-6-psnr")
    assert next(point.series for point in figure.points if point.star) == "4"
    _, _, legend = charts.draw_svg(figure).partition("role-legend")
    assert re.findall(r">(\d+)</text>", legend) == ["1", "2", "3", "4"]


def test_ids_of_two_charts_never_meet(drawn):
    ids = [each for _, svg in drawn.values() for each in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for _, svg in drawn.values():
        for used in re.findall(r"url\(#([^)]*)\)", svg):
            assert f'id="{used}"' in svg


def test_dark_pages_find_the_colours_they_replace(drawn):
    for _, svg in drawn.values():
        assert f'fill="{charts.INK}"' in svg
        assert f'stroke="{charts.GRID}"' in svg
        assert re.search(rf'^<svg[^>]*><rect [^>]*fill="{charts.PAPER}"', svg)


def test_a_png_is_twice_as_wide(drawn):
    figure, svg = drawn["figure-3-psnr"]
    content = charts.draw_png(figure)
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 2 * int(re.search(r'width="(\d+)"', svg)[1])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.03, 0.5, [0.05, 0.1, 0.2, 0.5]),
        (0.9, 11.0, [1.0, 2.0, 5.0, 10.0]),
        (2e-4, 3.0, [1e-3, 1e-2, 0.1, 1.0]),
    ],
)
def test_logarithmic_ticks_are_few_and_round(low, high, ticks):
    assert charts.choose_log_ticks(low, high) == pytest.approx(ticks)
