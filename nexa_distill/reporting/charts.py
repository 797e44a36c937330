"""Plots as HTML and SVG text, without scripts, fonts or network access.

All input texts are escaped here. `kind` is the CSS class of the colour: `teacher`, `before`,
`after`, `plain`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 46, 14, 14, 38


@dataclass(frozen=True)
class Bar:
    """One bar; a `value` of None or 0 draws none. `text` is printed beside it."""

    label: str
    value: float | None
    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Range:
    """A share 0..1 with its interval; None if not measured."""

    label: str
    share: float | None
    low: float | None
    high: float | None
    text: str
    kind: str


@dataclass(frozen=True)
class Line:
    """Points (x, y), x ascending."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str


def draw_bars(rows: Sequence[Bar], *, top: float | None = None) -> str:
    """Horizontal bars from 0 to `top` (default: the largest value)."""
    scale = top or max((row.value or 0 for row in rows), default=0) or 1
    return _plot_html((row.label, _bar_html(row, scale), row.text) for row in rows)


def _bar_html(row: Bar, scale: float) -> str:
    if not row.value:
        return ""
    return f'<i class="bar {row.kind}" style="width:{100 * row.value / scale:.2f}%"></i>'


def draw_ranges(rows: Sequence[Range]) -> str:
    """Points with their intervals on a scale from 0 to 100 %."""
    cells = [(row.label, _range_html(row), row.text) for row in rows]
    scale = "".join(f'<i class="tick" style="left:{x}%">{x} %</i>' for x in (0, 25, 50, 75, 100))
    return _plot_html([*cells, ("", f'<div class="scale">{scale}</div>', "")])


def _range_html(row: Range) -> str:
    grid = "".join(f'<i class="grid" style="left:{x}%"></i>' for x in (0, 25, 50, 75, 100))
    if row.share is None or row.low is None or row.high is None:
        return grid
    return (
        f'{grid}<i class="whisker {row.kind}" style="left:{100 * row.low:.2f}%;'
        f'width:{100 * (row.high - row.low):.2f}%"></i>'
        f'<i class="dot {row.kind}" style="left:{100 * row.share:.2f}%"></i>'
    )


def _plot_html(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<div class="row"><span class="label">{escape(label)}</span>'
        f'<div class="track">{drawn}</div><span class="value">{escape(text)}</span></div>'
        for label, drawn, text in rows
    )
    return f'<div class="plot">{cells}</div>'


def draw_lines(series: Sequence[Line], *, x_label: str, y_label: str, whole: bool = True) -> str:
    """A line chart in SVG; empty without points. `whole`: x values are whole numbers."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    x_ticks = choose_ticks(min(x for x, _ in points), max(x for x, _ in points), whole=whole)
    y_ticks = choose_ticks(min(y for _, y in points), max(y for _, y in points))

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for tick in y_ticks:
        _, y = to_pixels(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = to_pixels(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for line in series:
        placed = [to_pixels(*point) for point in line.points]
        parts += [_polyline_svg(placed, line.kind)] if len(placed) > 1 else []
        if len(placed) <= MARKED:
            parts += [f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in placed]
    return "".join(parts) + "</svg>" + _legend_html(series)


MARKED = 40  # a series with at most so many points also gets dots


def _polyline_svg(placed: Sequence[tuple[float, float]], kind: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return f'<polyline class="{kind}" points="{path}"/>'


def _legend_html(series: Sequence[Line]) -> str:
    names = "".join(f'<span><i class="key {line.kind}"></i>{escape(line.label)}</span>' for line in series)
    return f'<p class="legend">{names}</p>'


def choose_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten) that enclose low..high."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]
