"""The batching that follows from measured latencies."""

from __future__ import annotations

import math

import pytest

from backends.optimize.timing import Batching, tune

GAINS = {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 3.9, 32: 7.8}
"""Milliseconds by rows: from 8 rows on, twice the rows take nearly twice the time."""


@pytest.mark.parametrize(
    ("curve", "limit_ms", "expected"),
    [
        (GAINS, math.inf, Batching(8, (2, 4, 8))),
        (GAINS, 2.8, Batching(4, (2, 4))),
        (GAINS, 0.5, Batching(1, ())),
        ({1: 1.0, 2: 2.0, 4: 4.0}, math.inf, Batching(1, ())),
        ({1: 10.0, 8: 10.0, 64: 11.0}, math.inf, Batching(64, (8, 64))),
        ({4: 5.0}, 1.0, Batching(4, (4,))),
    ],
)
def test_batching(curve, limit_ms, expected):
    """Batches grow while rows/s do, and only so far that two of them keep to the limit of the latency."""
    assert tune(curve, limit_ms) == expected
