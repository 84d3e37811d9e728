"""Accuracy over latency as an SVG picture, the size of a file as the size of its point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from backends.optimize import report_cells
from backends.optimize.report import Report
from backends.optimize.results import Figures, Row, State

_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 20, 56
_LEAST_RADIUS, _LARGEST_RADIUS = 5.0, 22.0
_AROUND = 0.08  # of an axis, left free on both sides
_TICKS = (1, 2, 5)


class _Axis:
    """From values to pixels; `logarithmic` where a factor is what counts."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> None:
        self._logarithmic = logarithmic
        low, high = self._scaled(min(values)), self._scaled(max(values))
        around = (high - low) * _AROUND or abs(high) * 0.01 or 0.01
        self._low, self._high, self._start, self._end = low - around, high + around, start, end

    def at(self, value: float) -> float:
        """Where a value is."""
        share = (self._scaled(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if self._logarithmic:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            values = [factor * 10.0**power for power in powers for factor in _TICKS]
            found = [value for value in values if self._low <= math.log10(value) <= self._high]
            if len(found) >= 2:
                return found
        low, high = (10**end if self._logarithmic else end for end in (self._low, self._high))
        step = 10 ** math.floor(math.log10(high - low))
        step = next((step * part for part in (1, 0.5, 0.2) if (high - low) / (step * part) >= 3), step * 0.2)
        return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-6)) if self._logarithmic else value


def svg(report: Report) -> str:
    """The picture; "" if nothing was measured. Its colours are variables of the page around it."""
    measured = [(number, row, row.measured) for number, row in enumerate(report.of(State.MEASURED), 1)]
    points = [(number, row, figures) for number, row, figures in measured if figures]
    if not points:
        return ""
    x = _Axis([f.of("p50") for _, _, f in points], _LEFT, _WIDTH - _RIGHT, logarithmic=True)
    y = _Axis([f.accuracy.value for _, _, f in points], _HEIGHT - _BOTTOM, _TOP)
    largest = max(f.size_bytes for _, _, f in points)
    front = {row.name for row in report.front}
    by_size = sorted(points, key=lambda point: -point[2].size_bytes)  # small points above large ones
    parts = [
        *_axes(x, y),
        _front(x, y, report.front),
        *(_point(x, y, point, largest, front=point[1].name in front) for point in by_size),
    ]
    label = "Accuracy over latency of every variant; the size of a point is that of its file"
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">\n' + "\n".join(parts) + "\n</svg>"


def _axes(x: _Axis, y: _Axis) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in x.ticks():
        at = x.at(value)
        yield f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.4g}</text>'
    for value in y.ticks():
        at = y.at(value)
        yield f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    middle = (_LEFT + right) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">p50 through the gateway, ms (logarithmic)</text>'
    yield (
        f'<text x="18" y="{(_TOP + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 18 {(_TOP + bottom) / 2})">accuracy</text>'
    )


def _front(x: _Axis, y: _Axis, rows: Sequence[Row]) -> str:
    """A line through the front, as far as accuracy and latency make it one: size alone puts a point beside the line."""
    best = -math.inf
    corners = []
    for figures in sorted(_figures(rows), key=lambda f: (f.of("p50"), -f.accuracy.value)):
        if figures.accuracy.value > best:
            best = figures.accuracy.value
            corners.append(f"{x.at(figures.of('p50')):.1f},{y.at(best):.1f}")
    return f'<polyline class="front" points="{" ".join(corners)}"/>'


def _figures(rows: Sequence[Row]) -> list[Figures]:
    return [row.measured for row in rows if row.measured]


def _point(x: _Axis, y: _Axis, point: tuple[int, Row, Figures], largest: int, *, front: bool) -> str:
    number, row, figures = point
    at = x.at(figures.of("p50")), y.at(figures.accuracy.value)
    radius = max(_LEAST_RADIUS, _LARGEST_RADIUS * math.sqrt(figures.size_bytes / largest))  # the area is the size
    told = (
        f"{row.name}: accuracy {report_cells.ACCURACY.text(figures)}, p50 {figures.of('p50'):,.2f} ms, "
        f"{report_cells.size(figures.size_bytes)}"
    )
    kind = "original" if not row.steps else "best" if front else "other"
    return (
        f'<g class="{kind}"><title>{escape(told)}</title>'
        f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.1f}"/>'
        f'<text x="{at[0] + radius + 3:.1f}" y="{at[1] + 4:.1f}">{number}</text></g>'
    )
