"""Accuracy over latency as an SVG picture, the size of a file as the size of its point."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from html import escape
from typing import NamedTuple

from backends.optimize import report_cells
from backends.optimize.report import Report
from backends.optimize.results import Figures, Row, State

_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 20, 56
_LEAST_RADIUS, _LARGEST_RADIUS = 5.0, 22.0
_AROUND = 0.08  # of an axis, left free on both sides
_TICKS = (1, 2, 5)
_LETTER = 8.0  # about the height and the width of a number


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


class _Dot(NamedTuple):
    """A variant in the picture, in pixels."""

    number: int
    row: Row
    figures: Figures
    x: float
    y: float
    radius: float


def svg(report: Report) -> str:
    """The picture; "" if nothing was measured. Its colours are variables of the page around it."""
    measured = [(number, row, row.measured) for number, row in enumerate(report.of(State.MEASURED), 1)]
    points = [(number, row, figures) for number, row, figures in measured if figures]
    if not points:
        return ""
    x = _Axis([f.of("p50") for _, _, f in points], _LEFT, _WIDTH - _RIGHT, logarithmic=True)
    y = _Axis([f.accuracy.value for _, _, f in points], _HEIGHT - _BOTTOM, _TOP)
    largest = max(f.size_bytes for _, _, f in points)
    dots = [
        _Dot(number, row, f, x.at(f.of("p50")), y.at(f.accuracy.value), _radius(f.size_bytes / largest))
        for number, row, f in points
    ]
    front = {row.name for row in report.front}
    by_size = sorted(dots, key=lambda dot: -dot.radius)  # small ones above large ones
    parts = [
        *_axes(x, y),
        _front(x, y, report.front),
        *(_circle(dot, front) for dot in by_size),
        *_numbers(dots, front),
    ]
    label = "Accuracy over latency of every variant; the size of a point is that of its file"
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">\n' + "\n".join(parts) + "\n</svg>"


def _radius(share: float) -> float:
    """Of a point whose area is a size's share of the largest."""
    return max(_LEAST_RADIUS, _LARGEST_RADIUS * math.sqrt(share))


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


def _circle(dot: _Dot, front: Collection[str]) -> str:
    kind = "original" if not dot.row.steps else "best" if dot.row.name in front else "other"
    told = (
        f"{dot.row.name}: accuracy {report_cells.ACCURACY.text(dot.figures)}, "
        f"p50 {dot.figures.of('p50'):,.2f} ms, {report_cells.size(dot.figures.size_bytes)}"
    )
    circle = f'<circle class="{kind}" cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="{dot.radius:.1f}">'
    return f"{circle}<title>{escape(told)}</title></circle>"


def _numbers(dots: Sequence[_Dot], front: Collection[str]) -> Iterator[str]:
    """The numbers beside the points, those of the front first; one that would cover another is left out."""
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot.row.name not in front and bool(dot.row.steps)):
        away = dot.radius + _LETTER
        places = [(dot.x + dx * away, dot.y + dy * away) for dx, dy in ((1, 0), (0, -1), (0, 1), (-1, 0))]
        free = (
            place
            for place in places
            if all(abs(place[0] - x) > 2.2 * _LETTER or abs(place[1] - y) > 1.6 * _LETTER for x, y in taken)
        )
        if place := next(free, None):
            taken.append(place)
            yield f'<text class="number" x="{place[0]:.1f}" y="{place[1] + 4:.1f}">{dot.number}</text>'
