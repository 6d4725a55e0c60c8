"""Small SVG charts: no script, no style attribute (the page's policy forbids both), readable at a phone's width.

All are drawn on 440 x 250 units. Colour comes from the page's classes, so light and dark need one drawing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from warmstart.report.markup import esc, number

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 36
_MOST = 500  # points of a line: more cannot be seen at this width

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series. `kind` is its class on the page: `raw`, `main`, `second`. `band`: (x, lo, hi), an interval each."""

    name: str
    points: Sequence[Point]
    kind: str = "main"
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)


def line_chart(title: str, lines: Sequence[Line], *, x_name: str = "step", zero: bool = False) -> str:
    """Series over a common axis, with their intervals as bands. Empty text if there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [e for line in lines for _, *ends in line.band for e in ends]
    plot = _Plot.of(xs, [*ys, 0.0] if zero else ys)
    parts = [plot.axes(x_name)]
    parts += [_band(plot, line) for line in lines if line.band]
    parts += [_series(plot, line) for line in lines]
    return _figure(title, "".join(parts), _legend(lines))


def scatter(title: str, points: Sequence[Point], *, x_name: str, y_name: str) -> str:
    """Points over the diagonal on which both sides are equal."""
    if not points:
        return ""
    values = [value for point in points for value in point]
    plot = _Plot.of(values, values)
    low, high = plot.y_low, plot.y_high
    low, high = max(low, plot.x_low), min(high, plot.x_high)
    diagonal = f'<path class="grid" d="M{plot.x(low):.1f} {plot.y(low):.1f}L{plot.x(high):.1f} {plot.y(high):.1f}"/>'
    dots = "".join(f'<circle class="dot faint" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.5"/>' for x, y in points)
    return _figure(title, plot.axes(x_name) + diagonal + dots, f"<span>{esc(y_name)} upwards</span>")


def interval_bar(value: float, lo: float, hi: float, low: float, high: float) -> str:
    """A bar from lo to hi with a mark at the value, on a track from low to high."""
    span = (high - low) or 1.0

    def at(number_: float) -> float:
        return 4 + 152 * min(max((number_ - low) / span, 0.0), 1.0)

    return (
        '<svg class="bar" viewBox="0 0 160 14" width="160" height="14" aria-hidden="true">'
        '<rect class="track" x="4" y="6" width="152" height="2" rx="1"/>'
        f'<rect class="range" x="{at(lo):.1f}" y="4" width="{max(at(hi) - at(lo), 1):.1f}" height="6" rx="3"/>'
        f'<circle class="mark" cx="{at(value):.1f}" cy="7" r="3.5"/></svg>'
    )


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a twentieth of the points, without the start's bias; [] if under 20."""
    if len(points) < 20:
        return []
    keep = 1 - 2 / (len(points) / 20 + 3)
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def thin(points: Sequence[Point]) -> list[Point]:
    """At most about `_MOST` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _MOST:
        return list(points)
    stretch = math.ceil(len(points) / (_MOST // 2))
    out: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        out += sorted(ends)
    return out


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) between low and high."""
    raw = (high - low) / most
    if not raw >= sys.float_info.min:  # nothing between them that a number could be
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for m in (1, 2, 2.5, 5, 10) if (step := m * power) >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [
        round(k * step, 12 - math.floor(math.log10(step))) for k in range(first, math.floor(high / step + 1e-9) + 1)
    ]


@dataclass(frozen=True, slots=True)
class _Plot:
    """The two scales."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @staticmethod
    def of(xs: Sequence[float], ys: Sequence[float]) -> _Plot:
        x_low, x_high = min(xs), max(xs)
        y_low, y_high = min(ys), max(ys)
        pad = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        margin = 0.0 if x_high > x_low else 0.5
        return _Plot(x_low - margin, x_high + margin, y_low - (pad if y_low != 0 else 0), y_high + pad)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_name: str) -> str:
        parts = []
        for tick in ticks(self.y_low, self.y_high):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick, 3)}</text>')
        for tick in ticks(self.x_low, self.x_high):
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{number(tick)}</text>'
            )
        end = WIDTH - _RIGHT
        parts.append(f'<text class="axis" x="{end}" y="{HEIGHT - 4}" text-anchor="end">{esc(x_name)}</text>')
        return "".join(parts)


def _series(plot: _Plot, line: Line) -> str:
    points = thin(line.points)
    path = "".join(f"{'L' if i else 'M'}{plot.x(x):.1f} {plot.y(y):.1f}" for i, (x, y) in enumerate(points))
    drawn = f'<path class="line {line.kind}" d="{path}"/>' if len(points) > 1 else ""
    if line.dots or len(points) == 1:
        drawn += "".join(
            f'<circle class="dot {line.kind}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="3.5">'
            f"<title>{esc(line.name)} {number(y)} at {number(x)}</title></circle>"
            for x, y in points
        )
    return drawn


def _band(plot: _Plot, line: Line) -> str:
    if len(line.band) == 1:  # nothing to span: a whisker
        x, lo, hi = line.band[0]
        return f'<path class="line {line.kind}" d="M{plot.x(x):.1f} {plot.y(lo):.1f}V{plot.y(hi):.1f}"/>'
    upper = [f"{plot.x(x):.1f} {plot.y(hi):.1f}" for x, _, hi in line.band]
    lower = [f"{plot.x(x):.1f} {plot.y(lo):.1f}" for x, lo, _ in reversed(line.band)]
    return f'<path class="band" d="M{"L".join(upper + lower)}Z"/>'


def _legend(lines: Sequence[Line]) -> str:
    items = [f'<span class="key {line.kind}">{esc(line.name)}</span>' for line in lines]
    if any(line.band for line in lines):
        items.append('<span class="key area">95 % interval</span>')
    return "".join(items)


def _figure(title: str, drawing: str, legend: str) -> str:
    name = esc(title)
    return (
        f'<figure><figcaption>{name}<span class="legend">{legend}</span></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{drawing}</svg></figure>'
    )
