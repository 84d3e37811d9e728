"""Which variants the report recommends, and what it says got worse."""

from __future__ import annotations

import pytest

from backends.optimize import budget, choice
from backends.optimize.results import Figures, Row, Served, State
from backends.optimize.scores import Estimate
from backends.optimize.timing import Latency


def row(name, *, accuracy=0.9, low=-0.1, p50=1.0, rate=1000.0, size=1000):
    """A measured variant whose name is that of its steps."""
    latency = Latency(p50, 2 * p50, 3 * p50, 1000)
    drop = Estimate(0.9 - accuracy, low, 1.0)
    figures = Figures(Estimate(accuracy), drop, None, size, Served(latency, latency, 8, rate, 10**8))
    steps = () if name == "original" else tuple(name.split("_"))
    return Row(name, steps, State.MEASURED, figures=figures)


def names(rows):
    """Of the rows."""
    return [found.name for found in rows]


def test_front():
    """A variant is on the front unless another one is at least as good in everything, and better in something."""
    rows = [
        row("original"),
        row("small", size=10, p50=2.0),
        row("fast", p50=0.5, accuracy=0.8),
        row("worse", p50=0.6, accuracy=0.8),
        Row("failed", ("failed",), State.FAILED, "reason"),
    ]
    assert names(choice.front(rows)) == ["original", "small", "fast"]


def test_winner():
    """Of those within the budget that come within 10 % of the most rows/s, the smallest wins; or none."""
    rows = [row("fastest", rate=1000, size=900), row("near", rate=950, size=100), row("small", rate=500, size=1)]
    assert choice.winner(rows, budget.parse("accuracy>=0.5")).name == "near"
    assert choice.winner(rows, budget.parse("size<50B")).name == "small"
    assert choice.winner(rows, budget.parse("throughput>=2000")) is None


def test_nearest():
    """Without a winner the one that misses the limits by the least share is named, with what it misses."""
    limits = budget.parse("accuracy>=0.9, size<100B, p99<1ms")
    rows = [row("large", size=1000, p50=0.1), row("slow", size=90, p50=0.4)]
    assert choice.nearest(rows, limits).name == "slow"
    assert list(choice.misses(rows[1], limits)) == ["p99<1ms"]
    assert choice.nearest([], limits) is None


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (row("onnx", p50=1.05), []),
        (row("onnx", p50=2.0), ["slower than original: p50 2.00 against 1.00 ms"]),
        (row("onnx", rate=500), ["slower than original: 500 against 1,000 rows/s"]),
        (row("onnx", size=2000), ["larger than the original"]),
        (row("onnx", accuracy=0.8, low=0.05), ["less accurate than the original, beyond chance: by 10.00%"]),
        (row("onnx", accuracy=0.8, low=-0.05), []),
        (row("onnx", accuracy=0.9 - 1e-7, low=1e-8), []),
        (row("pt2_int8", p50=0.9), ["int8 is slower here than pt2: p50 0.90 against 0.50 ms"]),
    ],
)
def test_remarks(variant, expected):
    """What got worse is said against the original and against the step before; noise and rounding are not."""
    rows = [row("original"), row("pt2", p50=0.5), variant]
    assert choice.remarks(variant, rows) == expected
