"""The bare call: how long a variant's file takes through its backend alone, and the batching that follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.base import Array, Signature
from backends.optimize.bare import Call, loaded
from backends.optimize.variant import Artifact

_SIZES = (1, 2, 4, 8, 16, 32, 64)
_WARM_RUNS, _WARM_S = 5, 1.0
_LEAST_RUNS = 5
_SLOWEST_S = 2.0  # of a batch; larger ones are not tried
_KNEE = 0.95  # of the best rows/s: more rows a batch only make everyone wait longer


@dataclass(frozen=True, slots=True)
class Latency:
    """What calls took, in milliseconds; `count` says of how many."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The percentiles of some durations, at least one."""
        p50, p95, p99 = (float(ms) for ms in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
        return cls(p50, p95, p99, len(seconds))


@dataclass(frozen=True, slots=True)
class Bare:
    """A variant called directly, one call after the other.

    Attributes:
        load_s: seconds until it was loaded.
        latency: of the smallest batch that it takes: one row for nearly all.
        curve: median milliseconds of a batch by its rows, ascending.
    """

    load_s: float
    latency: Latency
    curve: Mapping[int, float]

    @property
    def rows_per_s(self) -> float:
        """At the best size of batch."""
        return max(1000 * rows / ms for rows, ms in self.curve.items())


@dataclass(frozen=True, slots=True)
class Batching:
    """What config.pbtxt says of batches, in rows."""

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...]


def measure(artifact: Artifact, tensors: Signature, rows: Mapping[str, Array], seconds: float) -> Bare:
    """Time an artifact in this process.

    Args:
        artifact: the file.
        tensors: its inputs and outputs.
        rows: for the inputs; repeated for batches of more.
        seconds: for the smallest batch, and as long for all larger ones together.

    Raises:
        LoadError: its backend does not take it; other exceptions are the runtime's.
    """
    began = time.perf_counter()
    with loaded(artifact, tensors) as call:
        load_s = time.perf_counter() - began
        most = artifact.max_batch_size or _SIZES[-1]
        sizes = artifact.batch_sizes or tuple(size for size in _SIZES if size <= most)
        first = _times(call, _resized(rows, sizes[0]), seconds)
        curve = {sizes[0]: float(np.median(first)) * 1000}
        for size in sizes[1:]:
            if curve[max(curve)] > _SLOWEST_S * 1000:
                break
            curve[size] = float(np.median(_times(call, _resized(rows, size), seconds / len(sizes)))) * 1000
    return Bare(load_s, Latency.of(first), curve)


def tune(curve: Mapping[int, float], limit_ms: float) -> Batching:
    """The batching that a curve of milliseconds by rows suggests.

    The largest batch is the smallest that has nearly the best rows/s of those that a latency limit leaves room for: a
    request may have to wait for the batch before its own.
    """
    allowed = {rows: ms for rows, ms in curve.items() if 2 * ms <= limit_ms} or {min(curve): curve[min(curve)]}
    best = max(rows / ms for rows, ms in allowed.items())
    knee = min(rows for rows, ms in allowed.items() if rows / ms >= _KNEE * best)
    return Batching(knee, tuple(rows for rows in allowed if 1 < rows <= knee))


def _resized(rows: Mapping[str, Array], size: int) -> dict[str, Array]:
    """So many of the rows, repeated where there are fewer."""
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in rows.items()}


def _times(call: Call, inputs: Mapping[str, Array], seconds: float) -> list[float]:
    """Seconds that single calls took, after some to warm up."""
    enough = time.perf_counter() + _WARM_S
    for _ in range(_WARM_RUNS):
        call(inputs)
        if time.perf_counter() > enough:
            break
    return list(_timed(call, inputs, seconds))


def _timed(call: Call, inputs: Mapping[str, Array], seconds: float) -> Iterator[float]:
    enough, runs = time.perf_counter() + seconds, 0
    while runs < _LEAST_RUNS or time.perf_counter() < enough:
        began = time.perf_counter()
        call(inputs)
        yield time.perf_counter() - began
        runs += 1
