"""Which calls are traced, and what is kept of them. That is decided first; spans are made much later.

Time stamps are taken of every request. What a span needs beyond them is written down for sampled calls only, and turned
into spans by `span_export.py` on a thread of its own, after the answer has left.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple, TypeAlias

from gateway.logs import about
from gateway.message import LONGEST
from gateway.request import Stages
from gateway.status import Status

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST_STATE = 512  # as much as has to be passed on by the specification
_PARENT, _STATE = "traceparent", "tracestate"
_LOW_64 = (1 << 64) - 1

FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""Codes that are the server's fault by OpenTelemetry's conventions: such spans are errors, and are always kept."""


class Parent(NamedTuple):
    """The caller's span. Source: W3C Trace Context."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which calls are sampled.

    Attributes:
        on: whether any is.
        rate: share of the calls, 0 to 1, that is decided about here.
        parent_based: whether the caller's own decision goes first.
        left: how many may still be sampled.
    """

    on: bool = False
    rate: float = 1.0
    parent_based: bool = True
    left: float = inf

    bound: int = field(init=False, repr=False)
    """What the low 64 bits of a sampled trace's id are below, as OpenTelemetry's TraceIdRatioBased has it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", round(self.rate * (_LOW_64 + 1)))


class Ids(NamedTuple):
    """Of a span, and of the one above it, 0 if there is none."""

    trace_id: int
    span_id: int
    parent_id: int = 0
    state: str = ""

    @property
    def hex_trace_id(self) -> str:
        """The trace's id as other programs show it."""
        return f"{self.trace_id:032x}"


@dataclass(slots=True)
class CallTrace:
    """What is kept of a call, or of a request within a stream, for its spans and its line in the log.

    Attributes:
        rpc: its full name, "package.Service/Method".
        stages: time stamps, where it was executed, and the span's ids once it is sampled.
        parent: the caller's span.
        deadline: when the caller stops waiting (`time.perf_counter`).
        within: the stream's span, for a request of a stream that is sampled itself.
        position: of a request in its stream, from 0; -1 for a whole call.
        model, version: as the caller names them, then the version that answers.
        backend: of that version.
        request_id: the caller's.
        ended: when the answer was ready (`time.perf_counter_ns`).
        status: None for OK.
    """

    rpc: str
    stages: Stages
    parent: Parent | None = None
    deadline: float = inf
    within: Ids | None = None
    position: int = -1
    model: str = ""
    version: str = ""
    backend: str = ""
    request_id: str = ""
    ended: int = 0
    status: Status | None = None

    def name(self, model: str, version: str, request_id: str = "") -> None:
        """Note what the caller names, cut to a length that traces and logs can be full of."""
        self.model, self.version, self.request_id = model[:LONGEST], version[:LONGEST], request_id[:LONGEST]

    def about(self) -> dict[str, object]:
        """Which it is, for the log."""
        trace_id = self.stages.span.hex_trace_id if self.stages.span else ""
        return about(model=self.model, version=self.version, request_id=self.request_id, trace_id=trace_id)

    def new_ids(self) -> Ids:
        """Of a span for it."""
        span_id = random.getrandbits(64)
        if self.within:
            return Ids(self.within.trace_id, span_id, self.within.span_id, self.within.state)
        if self.parent:
            return Ids(self.parent.trace_id, span_id, self.parent.span_id, self.parent.state)
        return Ids(random.getrandbits(128), span_id)


@dataclass(slots=True)
class Tracer:
    """Decides which calls are traced. Touched by the event loop alone, but for `finished`.

    Attributes:
        sampling: of all models without one of their own.
        by_model: of some.
        slow_ns: answers that took longer are kept, sampled or not; infinite for none.
        finished: calls that wait to become spans, the oldest first.
        most: how many may wait.
        dropped: spans of calls that found no room.
    """

    sampling: Sampling = field(default_factory=Sampling)
    by_model: dict[str, Sampling] = field(default_factory=dict)
    slow_ns: float = inf
    finished: deque[CallTrace] = field(default_factory=deque)
    most: int = 2048
    dropped: int = 0

    @property
    def on(self) -> bool:
        """Whether anything may be traced. Where it is not, there is no need to ask."""
        return self.sampling.on or bool(self.by_model)

    def begin(self, call: CallTrace) -> None:
        """Decide, once it is known which model is meant, if any."""
        sampling = self.by_model.get(call.model, self.sampling)
        if not sampling.on or sampling.left <= 0:
            return
        if call.parent and sampling.parent_based:
            if call.parent.sampled:
                call.stages.span = call.new_ids()
        else:
            ids = call.new_ids()
            # The trace's id decides, so that all who go by it agree; in a stream each request has a chance of its own.
            chance = random.getrandbits(64) if call.within else ids.trace_id & _LOW_64
            if chance < sampling.bound:
                call.stages.span = ids
        if call.stages.span and sampling.left < inf:
            self._change(call.model, replace(sampling, left=sampling.left - 1))

    def _change(self, name: str, sampling: Sampling) -> None:
        if name in self.by_model:
            self.by_model[name] = sampling
        else:
            self.sampling = sampling

    def end(self, call: CallTrace, status: Status | None) -> None:
        """A call has been answered: keep it if it is sampled, or has become worth it."""
        call.ended = time.perf_counter_ns()
        call.status = status
        if call.stages.span is None:
            slow = call.ended - call.stages.received > self.slow_ns
            failed = call.status is not None and call.status.code.name in FAULTS
            if not (slow or failed) or not self.by_model.get(call.model, self.sampling).on:
                return
            call.stages.span = call.new_ids()
        if len(self.finished) >= self.most:
            self.dropped += call.stages.passed + 1
        else:
            self.finished.append(call)


def parent_of(metadata: Metadata) -> Parent | None:
    """The caller's span, if the metadata names one as W3C Trace Context has it."""
    header = state = ""
    for key, value in metadata:
        if key == _PARENT:
            header = str(value)
        elif key == _STATE:
            state = f"{state},{value!s}" if state else str(value)
    match = _TRACEPARENT.fullmatch(header)
    if match is None or (match[1] == "00" and match[5]):
        return None
    trace_id, span_id, flags = (int(match[part], 16) for part in (2, 3, 4))
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(flags & 1), state if len(state) <= _LONGEST_STATE else "")
