"""Line charts as SVG text, drawn by Vega-Lite through altair and vl-convert (the `[report]` extra)."""

from __future__ import annotations

import html
import re

Series = dict[str, list[tuple[float, float]]]
"""Named lines of (x, y) points."""

WIDTH, HEIGHT = 380, 200


def line_chart(title: str, series: Series, *, x: str = "epoch") -> str:
    """An SVG of the lines over `x`; without the extra, a sentence that says how to get it."""
    try:
        import altair
        import vl_convert
    except ImportError:
        return f"<figcaption>{html.escape(title)}: charts need pip install 'usrgan[report]'</figcaption>"
    points = [
        {x: at, "value": value, "line": name} for name, line in series.items() for at, value in line
    ]
    chart = (
        altair.Chart(altair.Data(values=points), title=title, width=WIDTH, height=HEIGHT)
        .mark_line(point=len(points) < 60)
        .encode(
            x=altair.X(f"{x}:Q", axis=altair.Axis(tickMinStep=1, grid=False)),
            y=altair.Y("value:Q", title=None, scale=altair.Scale(zero=False)),
        )
    )
    if len(series) > 1:
        chart = chart.encode(
            color=altair.Color("line:N", title=None, legend=altair.Legend(orient="top"))
        )
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return re.sub(r"^<\?xml[^>]*>", "", drawn)
