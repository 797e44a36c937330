"""The axes of line charts: round ticks, and the pixel of a value. `templates/plots.html.j2` draws all plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIZE = WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38  # margins


@dataclass(frozen=True)
class Axis:
    """The first tick is at the pixel `begin`, the last one at `end`."""

    ticks: list[float]
    begin: int
    end: int

    def place_value(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.begin + share * (self.end - self.begin)


def chart_axes(points: Sequence[tuple[float, float]], whole: bool) -> tuple[Axis, Axis]:
    """The axes x and y that enclose the points. `whole`: x values are whole numbers."""
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = choose_ticks(min(xs), max(xs), whole=whole), choose_ticks(min(ys), max(ys))
    return Axis(x_ticks, LEFT, WIDTH - RIGHT), Axis(y_ticks, HEIGHT - BOTTOM, TOP)


def choose_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten) that enclose low..high."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]
