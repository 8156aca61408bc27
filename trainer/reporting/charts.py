"""Figures drawn by Vega-Lite through altair and vl-convert (the `[report]` extra): SVG and PNG.

A page may recolour an SVG for a dark background: ink, grid lines and background have the colours named here,
and nothing else uses them.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from trainer.reporting.figures import RAW, Figure

WIDTH, HEIGHT = 290, 190
"""Size of the plot area in CSS pixels: three plots fit a desktop page, one a phone's."""
INK, GRID, PAPER = "#30343a", "#e4e6ea", "#ffffff"
COLOURS = ("#3f7fd0", "#e07a2c", "#2f9e74", "#b05cc6")
STAR = "#d62839"
HOW_TO_GET_IT = "charts need pip install 'usrgan[report]' and an account with a home ($HOME)"
_POINTS_SHOWN = 40
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


def available() -> bool:
    """Return whether the `[report]` extra is installed and usable by this account."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except (ImportError, RuntimeError):  # altair wants to know where the home is
        return False
    return True


@lru_cache(maxsize=64)
def svg(figure: Figure) -> str:
    """The figure as one `<svg>` element."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_chart(figure).to_dict(validate=False))
    drawn = re.sub(r"^\s*<\?xml[^>]*>\s*", "", drawn)
    # several of these on one page: an id names one thing
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{figure.name}-", drawn)


def png(figure: Figure, *, scale: float = 2.0) -> bytes:
    """The figure as a PNG file."""
    import vl_convert

    drawn: bytes = vl_convert.svg_to_png(svg(figure), scale=scale)
    return drawn


def _chart(figure: Figure) -> Any:  # noqa: ANN401  altair is an extra: its types may be absent
    import altair as alt

    values = [point._asdict() for point in figure.points]
    base = alt.Chart(alt.Data(values=values), title=figure.title, width=WIDTH, height=HEIGHT)
    drawn = {"line": _line, "smoothed": _smoothed, "scatter": _scatter, "bars": _bars}
    return drawn[figure.mark](alt, base, figure).configure(**_CONFIG)


def _line(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    lengths = [sum(p.series == name for p in figure.points) for name in _names(figure)]
    dots = max(lengths) < _POINTS_SHOWN or min(lengths) == 1
    mark = base.mark_line(strokeWidth=1.8, point={"size": 18} if dots else False)
    encoded = mark.encode(x=_epochs(alt, figure), y=_y(alt, figure))
    if len(_names(figure)) == 1:
        return encoded
    return encoded.encode(color=alt.Color("series:N", sort=_names(figure), legend=_legend(alt)))


def _smoothed(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    raw = f"datum.series == '{RAW}'"
    return base.mark_line().encode(
        x=_epochs(alt, figure),
        y=_y(alt, figure),
        color=alt.Color("series:N", sort=_names(figure), legend=_legend(alt)),
        strokeWidth=alt.condition(raw, alt.value(1), alt.value(2.5)),
        opacity=alt.condition(raw, alt.value(0.6), alt.value(1)),
    )


def _scatter(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    inside = alt.Scale(zero=False, padding=8)
    x = alt.X("x:Q", title=figure.x, scale=inside, axis=alt.Axis(tickCount=5))
    y = alt.Y("y:Q", title=figure.y, scale=inside, axis=alt.Axis(tickCount=5))
    chart = base.transform_calculate(epoch="toNumber(datum.series)")
    legend = alt.Legend(
        title="epoch", orient="right", gradientLength=HEIGHT - 40, tickCount=4, format="d",
        tickMinStep=1,
    )  # fmt: skip
    numbers = [float(point.series) for point in figure.points]
    scale = alt.Scale(scheme="viridis", domain=[min(numbers), max(numbers)])  # the star's, too
    epochs = chart.transform_filter("!datum.star").mark_circle(size=40, opacity=0.85)
    colour = alt.Color("epoch:Q", scale=scale, legend=legend)
    star = chart.transform_filter("datum.star").mark_point(
        shape="M0,-1L0.23,-0.31L0.95,-0.31L0.37,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.37,0.12L-0.95,-0.31L-0.23,-0.31Z",
        size=220, filled=True, color=STAR, stroke=PAPER, strokeWidth=0.6, opacity=1,
    )  # fmt: skip
    both = (epochs.encode(x=x, y=y, color=colour), star.encode(x=x, y=y))
    return alt.layer(*both).properties(title=figure.title, width=WIDTH - 50, height=HEIGHT)


def _bars(alt: Any, base: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    places = list(dict.fromkeys(str(point.x) for point in figure.points))
    x = alt.X("x:N", title=figure.x, sort=places, axis=alt.Axis(labelAngle=0))
    beside = alt.XOffset("series:N", sort=_names(figure))
    bars = base.mark_bar().encode(
        x=x, xOffset=beside, y=_y(alt, figure),
        color=alt.Color("series:N", sort=_names(figure), legend=_legend(alt, offset=16)),
    )  # fmt: skip
    numbers = base.mark_text(dy=-6, fontSize=10, color=INK).encode(
        x=x, xOffset=beside, y=_y(alt, figure), text=alt.Text("y:Q", format="d")
    )
    return alt.layer(bars, numbers).properties(title=figure.title, width=WIDTH, height=HEIGHT)


def _names(figure: Figure) -> list[str]:
    return list(dict.fromkeys(point.series for point in figure.points))


def _epochs(alt: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    axis = alt.Axis(tickMinStep=1, tickCount=6, format="d", grid=False)
    return alt.X("x:Q", title=figure.x, axis=axis, scale=alt.Scale(nice=False))


def _y(alt: Any, figure: Figure) -> Any:  # noqa: ANN401  as above
    if not figure.log:
        scale, axis = alt.Scale(zero=figure.zero), alt.Axis(tickCount=5)
        return alt.Y("y:Q", title=figure.y, scale=scale, axis=axis)
    low, high = min(p.y for p in figure.points) * 0.9, max(p.y for p in figure.points) * 1.1
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=log_ticks(low, high), format="~r")
    return alt.Y("y:Q", title=figure.y, scale=scale, axis=axis)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, with their halves and fifths where those are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    every = -(-len(decades) // 6)
    ticks = [step * 10.0**decade for decade in decades[::every] for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _legend(alt: Any, *, offset: int = 4) -> Any:  # noqa: ANN401  as above
    return alt.Legend(title=None, orient="top", direction="horizontal", offset=offset)
