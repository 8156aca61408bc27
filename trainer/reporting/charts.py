"""Figures as SVG and PNG, drawn by Vega-Lite through altair and vl-convert (the `[report]` extra).

INK, GRID and PAPER colour text, grid lines and background and nothing else, so a page can replace them for a dark
theme.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from trainer.reporting.figures import RAW, Figure

WIDTH, HEIGHT = 290, 190
"""Size of the plot area, CSS pixels: three charts fit a desktop page, one a phone."""
INK, GRID, PAPER = "#30343a", "#e4e6ea", "#ffffff"
COLOURS = ("#3f7fd0", "#e07a2c", "#2f9e74", "#b05cc6")
STAR = "#d62839"
INSTALL_HINT = (
    "Charts need altair and vl-convert: pip install 'usrgan[report]'; altair also needs $HOME."
)
_MAX_DOTS = 40
_CONFIG: dict[str, Any] = {
    "background": PAPER,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK,
        "gridColor": GRID, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11,
               "titleFontWeight": "normal"},
    "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": 600, "offset": 10},
    "mark": {"color": COLOURS[0]},
    "range": {"category": list(COLOURS)},
}  # fmt: skip


def is_available() -> bool:
    """Return whether the `[report]` extra is installed and this account can use it."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except (ImportError, RuntimeError):  # altair looks for the home folder
        return False
    return True


@lru_cache(maxsize=64)
def draw_svg(figure: Figure) -> str:
    """Return a figure as one `<svg>` element."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_build_chart(figure).to_dict(validate=False))
    drawn = re.sub(r"^\s*<\?xml[^>]*>\s*", "", drawn)
    # several charts on one page: ids must be unique
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{figure.name}-", drawn)


def draw_png(figure: Figure, *, scale: float = 2.0) -> bytes:
    """Return a figure as the content of a PNG file."""
    import vl_convert

    drawn: bytes = vl_convert.svg_to_png(draw_svg(figure), scale=scale)
    return drawn


def _build_chart(figure: Figure) -> Any:  # noqa: ANN401  altair is an extra: its types may be absent
    import altair as alt

    values = [point._asdict() for point in figure.points]
    base = alt.Chart(alt.Data(values=values), title=figure.title, width=WIDTH, height=HEIGHT)
    drawn = {
        "line": _draw_lines,
        "smoothed": _draw_average,
        "scatter": _draw_scatter,
        "bars": _draw_bars,
    }
    return drawn[figure.mark](alt, base, figure).configure(**_CONFIG)


def _draw_lines(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    lengths = [sum(p.series == name for p in figure.points) for name in _list_series(figure)]
    dots = max(lengths) < _MAX_DOTS or min(lengths) == 1
    mark = base.mark_line(strokeWidth=1.8, point={"size": 18} if dots else False)
    encoded = mark.encode(x=_epoch_axis(alt, figure), y=_value_axis(alt, figure))
    if len(_list_series(figure)) == 1:
        return encoded
    return encoded.encode(
        color=alt.Color("series:N", sort=_list_series(figure), legend=_legend(alt))
    )


def _draw_average(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    raw = f"datum.series == '{RAW}'"
    return base.mark_line().encode(
        x=_epoch_axis(alt, figure),
        y=_value_axis(alt, figure),
        color=alt.Color("series:N", sort=_list_series(figure), legend=_legend(alt)),
        strokeWidth=alt.condition(raw, alt.value(1), alt.value(2.5)),
        opacity=alt.condition(raw, alt.value(0.6), alt.value(1)),
    )


def _draw_scatter(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    inside = alt.Scale(zero=False, padding=8)
    x = alt.X("x:Q", title=figure.x, scale=inside, axis=alt.Axis(tickCount=5))
    y = alt.Y("y:Q", title=figure.y, scale=inside, axis=alt.Axis(tickCount=5))
    chart = base.transform_calculate(epoch="toNumber(datum.series)")
    legend = alt.Legend(
        title="epoch", orient="right", gradientLength=HEIGHT - 40, tickCount=4, format="d",
        tickMinStep=1,
    )  # fmt: skip
    numbers = [float(point.series) for point in figure.points]
    scale = alt.Scale(scheme="viridis", domain=[min(numbers), max(numbers)])  # includes the star
    epochs = chart.transform_filter("!datum.star").mark_circle(size=40, opacity=0.85)
    colour = alt.Color("epoch:Q", scale=scale, legend=legend)
    star = chart.transform_filter("datum.star").mark_point(
        shape="M0,-1L0.23,-0.31L0.95,-0.31L0.37,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.37,0.12L-0.95,-0.31L-0.23,-0.31Z",
        size=220, filled=True, color=STAR, stroke=PAPER, strokeWidth=0.6, opacity=1,
    )  # fmt: skip
    both = (epochs.encode(x=x, y=y, color=colour), star.encode(x=x, y=y))
    return alt.layer(*both).properties(title=figure.title, width=WIDTH - 50, height=HEIGHT)


def _draw_bars(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    places = list(dict.fromkeys(str(point.x) for point in figure.points))
    x = alt.X("x:N", title=figure.x, sort=places, axis=alt.Axis(labelAngle=0))
    beside = alt.XOffset("series:N", sort=_list_series(figure))
    bars = base.mark_bar().encode(
        x=x, xOffset=beside, y=_value_axis(alt, figure),
        color=alt.Color("series:N", sort=_list_series(figure), legend=_legend(alt, offset=16)),
    )  # fmt: skip
    numbers = base.mark_text(dy=-6, fontSize=10, color=INK).encode(
        x=x, xOffset=beside, y=_value_axis(alt, figure), text=alt.Text("y:Q", format="d")
    )
    return alt.layer(bars, numbers).properties(title=figure.title, width=WIDTH, height=HEIGHT)


def _list_series(figure: Figure) -> list[str]:
    return list(dict.fromkeys(point.series for point in figure.points))


def _epoch_axis(alt: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    axis = alt.Axis(tickMinStep=1, tickCount=6, format="d", grid=False)
    return alt.X("x:Q", title=figure.x, axis=axis, scale=alt.Scale(nice=False))


def _value_axis(alt: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    if not figure.log:
        scale, axis = alt.Scale(zero=figure.zero), alt.Axis(tickCount=5)
        return alt.Y("y:Q", title=figure.y, scale=scale, axis=axis)
    low, high = min(p.y for p in figure.points) * 0.9, max(p.y for p in figure.points) * 1.1
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=choose_log_ticks(low, high), format="~r")
    return alt.Y("y:Q", title=figure.y, scale=scale, axis=axis)


def choose_log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two numbers; over less than two decades also their multiples by 2 and 5."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    every = -(-len(decades) // 6)
    ticks = [step * 10.0**decade for decade in decades[::every] for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _legend(alt: Any, *, offset: int = 4) -> Any:  # noqa: ANN401  as above
    return alt.Legend(title=None, orient="top", direction="horizontal", offset=offset)
