"""Budgets in words."""

from __future__ import annotations

import pytest

from backends.optimize import budget


@pytest.mark.parametrize(
    ("text", "name", "limit", "strict"),
    [
        ("accuracy>=0.97", "accuracy", 0.97, False),
        ("accuracy >= 97%", "accuracy", 0.97, False),
        ("drop<=1%", "drop", 0.01, False),
        ("p50<5ms", "p50", 5, True),
        ("p95 < 500us", "p95", 0.5, True),
        ("p99<=1.5s", "p99", 1500, False),
        ("size<1MB", "size", 1e6, True),
        ("size<1.5KiB", "size", 1536, True),
        ("memory<=2GB", "memory", 2e9, False),
        ("throughput>=1000", "throughput", 1000, False),
        ("throughput>1000 rows/s", "throughput", 1000, True),
    ],
)
def test_condition(text, name, limit, strict):
    """A condition is a figure, a bound and a unit, with spaces or without."""
    (condition,) = budget.parse(text)
    assert (condition.name, condition.limit, condition.strict) == (name, pytest.approx(limit), strict)


def test_several():
    """Conditions are separated by commas, and keep the words they were written in."""
    assert [c.text for c in budget.parse("accuracy>=0.97, p99<5ms,size<1MB")] == [
        "accuracy>=0.97",
        "p99<5ms",
        "size<1MB",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "'' is not understood; conditions are such as accuracy>=0.97, drop<=1%, p50<2ms"),
        ("fast", "'fast' is not understood"),
        ("speed>3", "'speed>3' is not understood"),
        ("p99=5ms", "'p99=5ms' is not understood"),
        ("p99<5ms,", "'' is not understood"),
        ("p99>5ms", "'p99>5ms': less p99 is better, expected as in p99<5ms"),
        ("accuracy<0.9", "'accuracy<0.9': more accuracy is better, expected as in accuracy>=0.97"),
        ("p99<5MB", "'p99<5MB': unit 'MB', expected ms, us, s: as in p99<5ms"),
        ("size<1", "'size<1': unit '', expected B, KB, MB, GB, KiB, MiB, GiB: as in size<1MB"),
        ("p99<5ms, p99<4ms", "'p99' is limited twice in 'p99<5ms, p99<4ms'"),
    ],
)
def test_mistakes(text, expected):
    """What is not understood is named, with what would be."""
    with pytest.raises(budget.InvalidBudget) as refused:
        budget.parse(text)
    assert str(refused.value).startswith(expected)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("p99<5ms", 5, False),
        ("p99<=5ms", 5, True),
        ("p99<5ms", 4.9, True),
        ("accuracy>=0.97", 0.97, True),
        ("accuracy>0.97", 0.97, False),
        ("drop<=1%", 0.98 - 0.97, True),
        ("drop<=1%", -0.5, True),
    ],
)
def test_bounds(text, value, holds):
    """The bound itself counts with <= and >= alone, and rounding of floats decides nothing."""
    (condition,) = budget.parse(text)
    assert condition.holds(value) is holds
    assert (condition.excess(value) == 0) is (holds or value == condition.limit)
