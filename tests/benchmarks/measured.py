"""A throughput and a latency out of the moments at which requests ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import BenchmarkError


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender's figures of one round.

    Attributes:
        rate: requests per second.
        p50_ms: median latency in milliseconds.
    """

    rate: float
    p50_ms: float


def steady(ends: Sequence[float], latencies: Sequence[float], in_flight: int) -> Measured:
    """Figures of a closed loop, from the end and latency of each request in seconds.

    Left out are the first `in_flight` requests, which found an idle server, and the last, during which fewer and fewer
    are under way: a server that answers 32 at a time would lose a whole batch's time to the edges.
    """
    count = len(ends) - 2 * in_flight
    if count < in_flight:
        raise BenchmarkError(f"{len(ends)} requests are too few to measure {in_flight} in flight: raise the duration")
    ordered = np.sort(np.asarray(ends))
    seconds = ordered[-in_flight - 1] - ordered[in_flight - 1]
    return Measured(count / seconds, float(np.median(latencies)) * 1000)
