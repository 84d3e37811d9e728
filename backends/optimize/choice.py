"""Which variants are worth a look, and which one is the winner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.optimize.budget import Budget
from backends.optimize.results import Figures, Row

_NOISE = 0.1  # of a rate or a duration: less of a difference is none on a machine that others use too
_CLEARLY = 0.75  # of a duration: so much faster that it will be so with another network of the same kind


def front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front: rows that no other one beats in accuracy, latency and size together."""
    measured = [row for row in rows if row.measured]
    return [row for row in measured if not any(_beats(other, row) for other in measured)]


def _beats(ours: Row, theirs: Row) -> bool:
    mine, yours = _merits(ours), _merits(theirs)
    return mine != yours and all(m >= y for m, y in zip(mine, yours, strict=True))


def _merits(row: Row) -> tuple[float, float, float]:
    figures = _figures(row)
    return figures.accuracy.value, -figures.of("p50"), -figures.of("size")


def clearly_beats(ours: Row, theirs: Row) -> bool:
    """Whether a row is no worse in accuracy and size than another, and faster by far."""
    if not (ours.measured and theirs.measured):
        return False
    (accuracy, speed, size), (accuracy2, speed2, size2) = _merits(ours), _merits(theirs)
    return accuracy >= accuracy2 and size >= size2 and -speed <= _CLEARLY * -speed2


def winner(rows: Sequence[Row], budget: Budget) -> Row | None:
    """Of the rows that keep to the budget: the one of most rows/s, or the smallest of those that have about as many."""
    within = [row for row in rows if row.measured and not list(misses(row, budget))]
    if not within:
        return None
    best = max(_figures(row).of("throughput") for row in within)
    near = [row for row in within if _figures(row).of("throughput") >= (1 - _NOISE) * best]
    return min(near, key=lambda row: _figures(row).of("size"))


def misses(row: Row, budget: Budget) -> Iterator[str]:
    """The conditions that a row does not keep to, as they were written."""
    for condition in budget:
        if not condition.holds(_figures(row).of(condition.name)):
            yield condition.text


def nearest(rows: Sequence[Row], budget: Budget) -> Row | None:
    """Of rows that all miss the budget, the one that misses it by the least, in shares of the limits together."""
    measured = [row for row in rows if row.measured]

    def distance(row: Row) -> float:
        return sum(condition.excess(_figures(row).of(condition.name)) for condition in budget)

    return min(measured, key=distance, default=None)


def remarks(row: Row, rows: Sequence[Row]) -> list[str]:
    """What got worse by the row's techniques: sentences beside the figures that show it."""
    figures = row.measured
    by_steps = {other.steps: other for other in rows if other.measured}
    if figures is None or not row.steps:
        return []
    found = []
    if figures.less_accurate:
        found.append(f"less accurate than the original, beyond chance: by {figures.drop.value:.2%}")
    if original := by_steps.get(()):
        found += _slower(figures, original)
        if figures.size_bytes > _figures(original).size_bytes * (1 + _NOISE):
            found.append("larger than the original")
    if len(row.steps) > 1 and (before := by_steps.get(row.steps[:-1])):
        found += _slower(figures, before, row.steps[-1])
    return found


def _slower(figures: Figures, other: Row, step: str = "") -> Iterator[str]:
    """In which way figures are worse than another row's, or nothing."""
    before = _figures(other)
    subject = f"{step} is slower here" if step else "slower"
    if figures.of("p50") > before.of("p50") * (1 + _NOISE):
        yield f"{subject} than {other.name}: p50 {figures.of('p50'):,.2f} against {before.of('p50'):,.2f} ms"
    elif figures.of("throughput") * (1 + _NOISE) < before.of("throughput"):
        rates = f"{figures.of('throughput'):,.0f} against {before.of('throughput'):,.0f} rows/s"
        yield f"{subject} than {other.name}: {rates}"


def _figures(row: Row) -> Figures:
    if row.measured is None:
        raise ValueError(f"{row.name} was not measured")
    return row.measured
