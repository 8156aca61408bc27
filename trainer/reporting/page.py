"""The parts of the report page: plain HTML that needs no network, for light and dark, desk and phone."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from shards.format.png import RGB8
from trainer.reporting.charts import GRID, INK, PAPER

STYLE = f"""
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; --quiet: #666b73; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.4rem 0 .4rem; border-top: 1px solid var(--line); padding-top: 1rem; }}
p.what, figcaption {{ color: var(--quiet); margin: .2rem 0 .8rem; font-size: .9rem; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; }}
td, th {{ padding: .25rem 1.1rem .25rem 0; text-align: left; white-space: nowrap; }}
td.long {{ white-space: normal; overflow-wrap: anywhere; }}
th {{ border-bottom: 1px solid var(--line); font-weight: 600; }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.charts {{ display: grid; gap: 1rem 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
svg {{ display: block; max-width: 100%; height: auto; }}
.compared {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .8rem;
  max-width: 49rem; }}
.compared > div {{ position: relative; }}
.compared img {{ display: block; width: 100%; border-radius: 4px; image-rendering: pixelated; }}
.slider img + img {{ position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }}
.slider i {{ position: absolute; top: 0; bottom: 0; left: var(--at); border-left: 2px solid #fff; margin-left: -1px;
  box-shadow: 0 0 3px #000; pointer-events: none; }}
.slider input {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
  touch-action: pan-y; }}
.slider input:focus-visible ~ i {{ border-color: Highlight; }}
.compared b {{ position: absolute; top: .4rem; left: .4rem; font: 600 .8rem system-ui, sans-serif; color: #fff;
  background: #000a; padding: .1rem .45rem; border-radius: 3px; pointer-events: none; max-width: 45%;
  overflow-wrap: anywhere; }}
.compared b.right {{ left: auto; right: .4rem; }}
img.strip {{ max-width: 100%; border-radius: 4px; }}
pre {{ background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto; }}
summary {{ cursor: pointer; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --quiet: #a4aab3; }}
  svg > rect[fill="{PAPER}"] {{ fill: none; }}
  svg [fill="{INK}"] {{ fill: #d5d9df; }}
  svg [stroke="{INK}"] {{ stroke: #969ca5; }}
  svg [stroke="{GRID}"] {{ stroke: #3b4047; }}
}}
"""
_SLIDE = "this.parentNode.style.setProperty('--at',this.value+'%')"


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int, long: bool = False
) -> str:
    """A table whose first `left` columns are words and the others numbers; `long` words may wrap."""
    words = "<td class=long>" if long else "<td>"
    head = "".join(
        f"<th{'' if at < left else ' class=n'}>{html.escape(title)}"
        for at, title in enumerate(titles)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"{words if at < left else '<td class=n>'}{html.escape(cell)}"
            for at, cell in enumerate(row)
        )
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}{body}</table></div>"


def note(text: str) -> str:
    """A quiet paragraph."""
    return f"<p class=what>{html.escape(text)}</p>"


def chart(svg: str, caption: str) -> str:
    """A drawn figure with what it means below."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def comparison(
    before: tuple[str, RGB8], after: tuple[str, RGB8], truth: tuple[str, RGB8], caption: str
) -> str:
    """Two pictures of one size under a slider that uncovers one or the other, and the truth beside."""
    names = [html.escape(name) for name, _ in (before, after, truth)]
    return (
        "<figure><div class=compared><div class=slider style='--at:50%'>"
        f"{picture(after[1], names[1])}{picture(before[1], names[0])}"
        f"<input type=range min=0 max=100 value=50 aria-label='{names[0]} or {names[1]}' oninput=\"{_SLIDE}\">"
        f"<i></i><b>{names[0]}</b><b class=right>{names[1]}</b></div>"
        f"<div>{picture(truth[1], names[2])}<b>{names[2]}</b></div></div>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def picture(pixels: RGB8, name: str, *, kind: str = "") -> str:
    """An `<img>` that holds its pixels, lossless; `name` is escaped already."""
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    written, content = cv2.imencode(".webp", bgr, lossless)
    assert written
    data = base64.b64encode(content.tobytes()).decode()
    wanted = f" class={kind}" if kind else ""
    return f"<img{wanted} alt='{name}' src='data:image/webp;base64,{data}'>"
