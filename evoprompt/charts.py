"""Inline SVG charts for pages: no script, nothing fetched, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

WIDTH, WIDE, HEIGHT = 440, 930, 230
"""Sizes of drawings in CSS px: two beside each other, or one over the whole page."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 12, 42
_LETTER, _LONGEST = 7, 60
"""Room for a letter of a row's name, in px, and the most letters of one."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5d6772; --line: #d9dde2; --page: #ffffff; --raised: #f5f6f8;
  --c0: #1f66b5; --c1: #c2600a; --good: #1d7a46; --bad: #b3261e; --mute: #adb3ba; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #3a414a;
  --page: #16191d; --raised: #1f242a; --c0: #6fb1f5; --c1: #f0a04b; --good: #62c48d; --bad: #f28b82;
  --mute: #59626d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .1rem; }
figure h3 { margin-top: 0; }
p { margin: .4rem 0; max-width: 48rem; }
.soft, figcaption, .legend { color: var(--soft); font-size: .85rem; }
.verdict { border-left: 5px solid var(--soft); background: var(--raised); padding: .8rem 1.1rem; margin: 1rem 0; }
.verdict.good { border-color: var(--good); }
.verdict p { max-width: none; display: flex; }
.verdict p:first-child { font-size: 1.05rem; font-weight: 600; margin-bottom: .7rem; }
.verdict b { flex: 0 0 5.2rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.6rem 2.2rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; margin: .6rem 0 1.2rem; align-items: flex-start; }
figure { margin: 0; break-inside: avoid; max-width: 31rem; }
figure.wide { max-width: none; }
.row figure { width: min-content; }
figcaption { overflow-wrap: anywhere; margin-top: .2rem; }
img { display: block; max-width: 100%; height: auto; }
img.sharp { image-rendering: pixelated; }
.row img { max-width: none; }
.pair { display: flex; gap: 6px; align-items: center; width: max-content; }
.won { outline: 3px solid var(--good); outline-offset: -3px; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; }
td:last-child { overflow-wrap: anywhere; }
td .soft { font-size: inherit; }
td code { white-space: nowrap; }
.accepted { color: var(--good); }
.rejected, .worry { color: var(--bad); font-weight: 600; }
code, pre { font: .85em ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--raised); padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.legend span { margin-right: 1.1rem; white-space: nowrap; }
svg { overflow: visible; }
svg.key { vertical-align: -1px; }
svg.chart { width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .label { font-size: 12px; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.rule { stroke: var(--line); }
.axis { stroke: var(--soft); }
.mark { stroke: var(--soft); stroke-dasharray: 1 3; }
.line { fill: none; stroke-width: 2; stroke: var(--soft); }
.c0 { stroke: var(--c0); }
.c1 { stroke: var(--c1); stroke-dasharray: 6 3; }
.faint { stroke-width: 1; opacity: .5; }
.hang { stroke-width: 1.3; stroke-dasharray: 2 3; }
.cross, .whisker { stroke-dasharray: none; }
.whisker { stroke-width: 1; }
.d0 { fill: var(--c0); }
.d1 { fill: var(--c1); }
.f0 { fill: var(--c0); opacity: .15; }
.b0 { fill: var(--mute); }
.b1 { fill: var(--c0); }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2, h3 { break-after: avoid; }
  svg, .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; } tr { break-inside: avoid; }
  table { font-size: 8pt; } th, td { padding: .2rem .6rem .2rem 0; } }
"""
"""Of the page; charts take their colours and strokes from it."""


class Line(NamedTuple):
    """One series of a line chart.

    Attributes:
        name: For the legend.
        x: Positions.
        y: Values, as many; points that are NaN are left out.
        low: Lower ends of an interval around each value; empty for none.
        high: Upper ends.
        rejected: True for points that nothing was built on: they are crosses beside the line, which goes on at the last
            value that was.
        faint: Drawn thin, in grey, as the background to another series.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    rejected: Sequence[bool] = ()
    faint: bool = False


class _Frame(NamedTuple):
    """Maps values to places in a drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    right: float = WIDTH - _RIGHT

    def x(self, value: float) -> float:
        share = (value - self.x0) / ((self.x1 - self.x0) or 1)
        return round(_LEFT + share * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y0) / ((self.y1 - self.y0) or 1)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    span: float,
    whole: bool = True,
    dots: bool = True,
    marks: Sequence[tuple[float, str]] = (),
    width: int = WIDTH,
) -> str:
    """A line chart.

    Args:
        lines: One or two series, told apart by colour, stroke and marker; the first is drawn on top, a faint one comes
            last.
        x_label: With unit.
        y_label: With unit.
        span: Least height of the value axis, so that noise is not blown up to the size of the chart.
        whole: Ticks of the x axis at whole numbers, with half a unit of room at either end.
        dots: Mark the points.
        marks: Positions of vertical lines and what to write at them.
        width: Of the drawing, ``WIDTH`` or ``WIDE``.

    Returns:
        An ``<svg>`` element.
    """
    across = [v for line in lines for v in line.x]
    room = 0.4 if whole else 0.0
    low, high = _range([v for line in lines for v in (*line.y, *line.low, *line.high)], span)
    frame = _Frame(min(across) - room, max(across) + room, low, high, width - _RIGHT)
    x_ticks = _whole_ticks(min(across), max(across)) if whole else _ticks(min(across), max(across))
    parts = [_axes(frame, x_ticks, _ticks(low, high), x_label, y_label)]
    for place, text in marks:
        x = frame.x(place)
        parts.append(_tag("line", x1=x, x2=x, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="mark"))
        parts.append(_tag("text", text, x=x + 4, y=_TOP + 9, class_="tick"))
    parts += [_draw(line, index, frame, dots) for index, line in reversed(list(enumerate(lines)))]
    names = ", ".join(line.name for line in lines)
    return _svg(parts, f"{y_label} ({names}) over {x_label}", width)


def histogram(stacks: Sequence[tuple[str, Sequence[int]]], edges: Sequence[float], x_label: str, y_label: str) -> str:
    """A histogram of stacked counts.

    Args:
        stacks: Name and counts (len(edges) - 1) of each part, the lowest first.
        edges: Of the bins, evenly spaced.
        x_label: With unit.
        y_label: With unit.

    Returns:
        An ``<svg>`` element.
    """
    tops = np.sum([counts for _, counts in stacks], axis=0)
    frame = _Frame(edges[0], edges[-1], 0, max(1, float(tops.max())) * 1.05)
    parts = [_axes(frame, [float(e) for e in edges[::2]], _ticks(0, frame.y1), x_label, y_label)]
    base = np.zeros(len(edges) - 1)
    for index, (_, counts) in enumerate(stacks):
        for k, count in enumerate(counts):
            left, right = frame.x(edges[k]) + 1, frame.x(edges[k + 1]) - 1
            top, bottom = frame.y(base[k] + count), frame.y(base[k])
            if count:
                width, height = round(right - left, 1), round(bottom - top, 1)
                parts.append(_tag("rect", x=left, y=top, width=width, height=height, class_=f"bar b{index}"))
        base += counts
    return _svg(parts, f"{y_label} over {x_label}: {', '.join(name for name, _ in stacks)}")


def interval_chart(
    names: Sequence[str], panels: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], x_label: str
) -> str:
    """Values with intervals, one row a name, one panel a series; all panels share the rows and the scale.

    Args:
        names: Of the rows, from the top; of a very long one only the end is shown.
        panels: Title, and value, low and high of every row; a value that is NaN leaves its row empty, bounds that are
            NaN leave the interval out.
        x_label: Under every panel.

    Returns:
        An ``<svg>`` element as wide as the page, a line marking 0 where it is in range.
    """
    names = [name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :] for name in names]
    label, row, top = max(150, 12 + _LETTER * max(map(len, names), default=0)), 22, 24
    bottom = top + row * len(names)
    finite = [v for _, values in panels for triple in values for v in triple if math.isfinite(v)] or [0.0, 1.0]
    low, high = _range(finite, 0.1)
    room = (WIDE - label - _RIGHT) / max(1, len(panels))
    parts = [
        _tag("text", name, x=label - 12, y=top + row * k + row / 2 + 4, class_="tick end")
        for k, name in enumerate(names)
    ]
    for number, (title, values) in enumerate(panels):
        left, right = label + number * room, label + (number + 1) * room - 18
        parts.append(_tag("text", title, x=(left + right) / 2, y=14, class_="label middle"))
        ticks = _ticks(low, high)
        for tick, text in zip(ticks, _labels(ticks), strict=True):
            x = round(left + (tick - low) / (high - low) * (right - left), 1)
            parts.append(_tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="rule" if tick else "axis"))
            parts.append(_tag("text", text, x=x, y=bottom + 16, class_="tick middle"))
        parts.append(_tag("text", x_label, x=(left + right) / 2, y=bottom + 34, class_="label middle"))
        for k, triple in enumerate(values):
            y = top + row * k + row / 2
            at = [round(left + (v - low) / (high - low) * (right - left), 1) if math.isfinite(v) else v for v in triple]
            if all(map(math.isfinite, at)):
                parts.append(_tag("line", x1=at[1], x2=at[2], y1=y, y2=y, class_="line whisker c0"))
            if math.isfinite(at[0]):
                parts.append(_dot(at[0], y, 0))
    return _svg(parts, f"{x_label}: {', '.join(title for title, _ in panels)}", WIDE, bottom + 42)


def line_legend(lines: Sequence[Line], *, dots: bool = True) -> str:
    """Keys to the series of a line chart, and to rejected points when there are any."""
    keys = []
    for index, line in enumerate(lines):
        stroke = _tag("line", x1=0, x2=20, y1=6, y2=6, class_="line faint" if line.faint else f"line c{index}")
        keys.append(_key(stroke + (_dot(10, 6, index) if dots else ""), line.name))
    if any(any(line.rejected) for line in lines):
        keys.append(_key(_cross(10, 6, ""), "rejected round"))
    return f'<div class="legend">{"".join(keys)}</div>'


def bar_legend(names: Sequence[str]) -> str:
    """Keys to the parts of a histogram."""
    boxes = [_tag("rect", x=1, y=1, width=18, height=10, class_=f"bar b{index}") for index in range(len(names))]
    return f'<div class="legend">{"".join(map(_key, boxes, names))}</div>'


def _draw(line: Line, index: int, frame: _Frame, dots: bool) -> str:
    rejected = line.rejected or [False] * len(line.x)
    points = [k for k, value in enumerate(line.y) if math.isfinite(value)]
    path = _built(points, rejected)
    parts = []
    if line.low:
        ends = [(line.x[k], line.high[b]) for k, b in path] + [(line.x[k], line.low[b]) for k, b in reversed(path)]
        parts.append(_tag("polygon", points=_points(ends, frame), class_=f"band f{index}"))
    css = "line faint" if line.faint else f"line c{index}"
    parts.append(_tag("polyline", points=_points([(line.x[k], line.y[b]) for k, b in path], frame), class_=css))
    for k in points if dots else []:
        x, y = frame.x(line.x[k]), frame.y(line.y[k])
        if rejected[k]:
            parts.append(_off(line, k, dict(path).get(k), index, frame))
        else:
            parts.append(_dot(x, y, index))
    return "".join(parts)


def _built(points: Sequence[int], rejected: Sequence[bool]) -> list[tuple[int, int]]:
    """Each point with the one whose value holds there: itself, or the last that was not rejected."""
    path: list[tuple[int, int]] = []
    for k in points:
        if not rejected[k]:
            path.append((k, k))
        elif path:
            path.append((k, path[-1][1]))
    return path


def _off(line: Line, k: int, built: int | None, index: int, frame: _Frame) -> str:
    """A rejected point: a cross, a dashed stroke to the value that held on, and its own interval."""
    x, y = frame.x(line.x[k]), frame.y(line.y[k])
    parts = []
    if line.low:
        low, high = frame.y(line.low[k]), frame.y(line.high[k])
        parts.append(_tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"line whisker c{index}"))
    elif built is not None:
        parts.append(_tag("line", x1=x, x2=x, y1=frame.y(line.y[built]), y2=y, class_=f"line hang c{index}"))
    return "".join([*parts, _cross(x, y, f"c{index}")])


def _dot(x: float, y: float, index: int) -> str:
    if index % 2:
        return _tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=f"dot d{index}")
    return _tag("circle", cx=x, cy=y, r=4, class_=f"dot d{index}")


def _cross(x: float, y: float, css: str) -> str:
    path = f"M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8"
    return _tag("path", d=path, class_=f"line cross {css}")


def _key(inner: str, name: str) -> str:
    drawing = f'<svg class="key" width="20" height="12" aria-hidden="true">{inner}</svg>'
    return f"<span>{drawing} {escape(name)}</span>"


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    parts = []
    for tick, text in zip(y_ticks, _labels(y_ticks), strict=True):
        y = frame.y(tick)
        parts.append(_tag("line", x1=_LEFT, x2=frame.right, y1=y, y2=y, class_="rule"))
        parts.append(_tag("text", text, x=_LEFT - 7, y=y + 4, class_="tick end"))
    for tick, text in zip(x_ticks, _labels(x_ticks), strict=True):
        parts.append(_tag("text", text, x=frame.x(tick), y=HEIGHT - _BOTTOM + 16, class_="tick middle"))
    bottom = HEIGHT - _BOTTOM
    parts.append(_tag("line", x1=_LEFT, x2=frame.right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_tag("text", x_label, x=(_LEFT + frame.right) / 2, y=HEIGHT - 6, class_="label middle"))
    middle = (_TOP + bottom) / 2
    parts.append(_tag("text", y_label, x=10, y=middle, class_="label middle", transform=f"rotate(-90 10 {middle})"))
    return "".join(parts)


def _range(values: Sequence[float], span: float) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = max(span - (high - low), 0.16 * (high - low)) / 2
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    rough = (high - low) / 4 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.99)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    step = max(1, math.ceil((high - low) / 12))
    return [float(v) for v in range(round(low), round(high) + 1, step)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """All ticks of an axis with the same number of decimals."""
    decimals = max((len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _points(places: Sequence[tuple[float, float]], frame: _Frame) -> str:
    return " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in places)


def _svg(parts: Sequence[str], summary: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    title = _tag("title", summary)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{title}{"".join(parts)}</svg>'


def _tag(name: str, content: str = "", **attributes: Any) -> str:
    given = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{given}>{escape(content)}</{name}>"
