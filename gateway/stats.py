"""What one model version has done since it was loaded: the numbers behind ModelStatistics and the metrics.

Fields and their meaning are Triton's (statistics extension). Whoever shares a batch counts its whole execution time.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from backends.base import InvalidInput
from gateway import errors
from gateway.batch import Batch, Execution
from gateway.request import Stages
from tensorgate_client.wire import inference_pb2 as pb

_Numbers: TypeAlias = npt.NDArray[np.int64]

BOUNDS_NS = [digits * 10**power for power in range(3, 10) for digits in (10, 25, 50)][:-1]
"""Upper bounds of the buckets that durations are counted in: 10 us, 25 us, 50 us, 100 us ... 25 s."""

_BOUNDS = np.array(BOUNDS_NS)

STAGES = ("cache", "decode", "queue", "execute", "encode")
"""Of a request's way, in their order."""


_MOMENTS = 8
"""Of an answered request, that are noted: the ends of its stages, and of the parts of its execution."""

_TOGETHER = 512 * _MOMENTS
"""Moments that are counted together."""


class Failure(StrEnum):
    """Why a request got no answer. A caller whose own deadline ends the call counts as cancelled."""

    QUEUE_FULL = "queue_full"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID_REQUEST = "invalid_request"
    INVALID_INPUT = "invalid_input"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


_FAILURES: dict[type[BaseException], Failure] = {
    errors.QueueFull: Failure.QUEUE_FULL,
    errors.DeadlineExceeded: Failure.EXPIRED,
    asyncio.CancelledError: Failure.CANCELLED,
    errors.InvalidRequest: Failure.INVALID_REQUEST,
    errors.RequestTooLarge: Failure.INVALID_REQUEST,
    errors.NotOffered: Failure.INVALID_REQUEST,
    InvalidInput: Failure.INVALID_INPUT,
    errors.ModelNotReady: Failure.UNAVAILABLE,
}


@dataclass(slots=True)
class Duration:
    """How often something happened and how long that took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Note that it happened."""
        self.count += 1
        self.ns += ns


class Exemplar(NamedTuple):
    """A trace that a duration is known from, and when that was, in seconds since the epoch."""

    trace_id: str
    ns: int
    at: float


@dataclass(slots=True)
class Histogram:
    """A `Duration` that also knows how many took how long.

    Plain lists: a library's own histogram costs four times as much.

    Attributes:
        ns: altogether.
        counts: by bucket of `BOUNDS_NS`; the last one is of all that is longer.
        exemplars: the latest of each bucket.
    """

    ns: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))
    exemplars: dict[int, Exemplar] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How often it happened."""
        return sum(self.counts)

    def add(self, ns: int) -> None:
        """Note that it happened."""
        self.ns += ns
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1

    def add_all(self, ns: _Numbers) -> None:
        """Note that it happened so many times."""
        self.ns += int(ns.sum())
        found = np.bincount(np.searchsorted(_BOUNDS, ns), minlength=len(self.counts))
        self.counts = [own + more for own, more in zip(self.counts, found.tolist(), strict=True)]

    def exemplify(self, ns: int, trace_id: str) -> None:
        """Note in which trace such a duration can be seen."""
        self.exemplars[bisect_left(BOUNDS_NS, ns)] = Exemplar(trace_id, ns, time.time())

    def include(self, other: Histogram) -> None:
        """Count what another has counted, too."""
        self.ns += other.ns
        self.counts = [own + more for own, more in zip(self.counts, other.counts, strict=True)]

    def copy(self) -> Histogram:
        """The same, apart."""
        return Histogram(self.ns, self.counts.copy(), self.exemplars.copy())


@dataclass(slots=True)
class Compute:
    """Executions, and how long their three parts took altogether."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, execution: Execution) -> None:
        """Note an execution."""
        self.count += 1
        self.input_ns += execution.assembled_ns - execution.started_ns
        self.infer_ns += execution.executed_ns - execution.assembled_ns
        self.output_ns += execution.finished_ns - execution.executed_ns

    def add_all(self, moments: _Numbers) -> None:
        """Note executions by when they began, had their inputs, had their outputs, and ended, a column each."""
        inputs, infer, outputs = np.diff(moments, axis=0).sum(axis=1).tolist()  # a sum of moments might overflow
        self.count += moments.shape[1]
        self.input_ns += inputs
        self.infer_ns += infer
        self.output_ns += outputs

    def protos(self) -> dict[str, pb.StatisticDuration]:
        """As the wire has it, by the fields' names."""
        parts = {"input": self.input_ns, "infer": self.infer_ns, "output": self.output_ns}
        return {f"compute_{name}": pb.StatisticDuration(count=self.count, ns=ns) for name, ns in parts.items()}


@dataclass(slots=True)
class ModelStatistics:
    """Counters of one version. Touched by the event loop alone, but for `repeats`; others read a copy.

    Attributes:
        success, fail: requests from their arrival to their answer.
        failures: `fail` by its reason.
        cache, decode, queue, execute, encode: the stages of answered requests, of each those that it went through.
        compute: the parts of `execute`.
        cache_hit, cache_miss: looking up; for a miss, also keeping the response.
        by_rows: executions by their rows.
        load_s: how long loading took.
        repeats: requests that were answered from the cache without being read; counted by whoever answers them. In a
            copy they are where other hits are.
    """

    success: Histogram = field(default_factory=Histogram)
    fail: Duration = field(default_factory=Duration)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    cache: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    execute: Histogram = field(default_factory=Histogram)
    encode: Histogram = field(default_factory=Histogram)
    compute: Compute = field(default_factory=Compute)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    by_rows: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))
    rows: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    load_s: float = 0.0
    repeats: Histogram = field(default_factory=Histogram)
    _answered: array[int] = field(default_factory=lambda: array("q"))

    def executed(self, batch: Batch) -> None:
        """Note a batch that was executed well."""
        self.rows += batch.rows
        self.executions += 1
        self.by_rows[batch.rows].add(batch.execution)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def hit(self, stages: Stages) -> None:
        """Note a request that was answered from the cache, or with the answer to an equal one."""
        looked_up = stages.cache - stages.received
        self.cache_hit.add(looked_up)
        self.cache.add(looked_up)
        # As Triton counts, whatever was answered has been in the queue: for as long as it waited for its equal.
        self.queue.add(time.perf_counter_ns() - stages.cache)

    def succeeded(self, stages: Stages) -> None:
        """Note an answer, once it is encoded. It is counted with others, later: one by one takes six times as long."""
        assembled = executed = 0
        if stages.execute and (execution := stages.execution):
            assembled, executed = execution.assembled_ns, execution.executed_ns
        moments = stages.received, stages.cache, stages.decode, stages.queue, assembled, executed, stages.execute
        self._answered.extend((*moments, stages.encode))
        if len(self._answered) >= _TOGETHER:
            self._count()
        if stages.span:
            self.success.exemplify(stages.encode - stages.received, stages.span.hex_trace_id)

    def _count(self) -> None:
        answered, self._answered = np.array(self._answered, np.int64).reshape(-1, _MOMENTS), array("q")
        received, *_, encoded = answered.T
        self.success.add_all(encoded - received)
        received, cache, decoded, started, assembled, executed, ended, encoded = answered[answered[:, -2] > 0].T
        looked_up = np.maximum(received, cache)  # without a cache 0
        self.cache.add_all((cache - received)[cache > 0])
        self.decode.add_all(decoded - looked_up)
        self.queue.add_all(started - decoded)
        self.execute.add_all(ended - started)
        self.encode.add_all(encoded - ended)
        self.compute.add_all(np.stack((started, assembled, executed, ended)))

    def failed(self, stages: Stages, error: BaseException) -> None:
        """Note a request that got none: refused, failed, expired or cancelled."""
        self.fail.add(time.perf_counter_ns() - stages.received)
        known = (_FAILURES[kind] for kind in type(error).__mro__ if kind in _FAILURES)
        self.failures[next(known, Failure.FAILED)] += 1

    def copy(self) -> ModelStatistics:
        """The counters as they are now, for a thread that takes its time to read them."""
        self._count()
        stages = {name: getattr(self, name).copy() for name in ("success", *STAGES)}
        sums = {name: replace(getattr(self, name)) for name in ("fail", "compute", "cache_hit", "cache_miss")}
        by_rows = defaultdict(Compute, {rows: replace(compute) for rows, compute in self.by_rows.items()})
        copy = replace(
            self,
            failures=self.failures.copy(),
            by_rows=by_rows,
            repeats=Histogram(),
            _answered=array("q"),
            **stages,
            **sums,
        )
        repeats = self.repeats.copy()
        copy.success.include(repeats)
        copy.cache.include(repeats)
        copy.queue.include(Histogram(0, [repeats.count, *[0] * len(BOUNDS_NS)]))
        copy.cache_hit.count += repeats.count
        copy.cache_hit.ns += repeats.ns
        return copy

    def fill(self, proto: pb.ModelStatistics) -> None:
        """Write the counters of a copy into the wire's message."""
        proto.last_inference = self.last_inference_ms
        proto.inference_count = self.rows
        proto.execution_count = self.executions
        totals = proto.inference_stats
        for name in ("success", "fail", "queue", "cache_hit", "cache_miss"):
            duration = getattr(self, name)
            getattr(totals, name).CopyFrom(pb.StatisticDuration(count=duration.count, ns=duration.ns))
        for name, duration in self.compute.protos().items():
            getattr(totals, name).CopyFrom(duration)
        for rows, compute in sorted(self.by_rows.items()):
            proto.batch_stats.add(batch_size=rows, **compute.protos())
