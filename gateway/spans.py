"""Spans out of what was kept of calls, once their answers have left. Needs the package opentelemetry-sdk.

A call becomes a server span with a child for each stage that it went through; the executions that it shared become root
spans, linked to and from every member. Names and attributes of the server span are those of OpenTelemetry's semantic
conventions for gRPC, the others begin with "tensorgate.".
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from gateway.batch import Execution
from gateway.tracing import FAULTS, CallTrace, Ids

Attributes: TypeAlias = Mapping[str, str | int | bool]

_FLAGS = TraceFlags(TraceFlags.SAMPLED)


@dataclass(slots=True)
class _Shared:
    """A batch some of whose members are traced.

    Attributes:
        links: to those members.
        seen_at: when the first of them was seen.
    """

    execution: Execution
    context: SpanContext
    model: tuple[str, str, str]
    links: list[Link] = field(default_factory=list)
    seen_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Times:
    """A stretch of time, in nanoseconds since the epoch."""

    start: int
    end: int


class SpanBuilder:
    """Makes spans. Used by one thread.

    Args:
        resource: what produces them.
        scope: of the instrumentation.
        server: attributes of every server span.
    """

    def __init__(self, resource: Resource, scope: InstrumentationScope, server: Attributes) -> None:
        self._resource = resource
        self._scope = scope
        self._server = dict(server)
        self._shared: dict[int, _Shared] = {}
        self._offset = 0

    def call(self, trace: CallTrace) -> Iterator[ReadableSpan]:
        """A call's own span and its stages'; its batch is noted for `batches`."""
        epoch = self._epoch()
        ids = cast("Ids", trace.stages.span)
        state = TraceState.from_header([ids.state]) if ids.state else None
        context = _context(ids.trace_id, ids.span_id, state)
        own = _Times(trace.stages.received + epoch, trace.ended + epoch)
        yield self._own_span(trace, context, own)
        links: list[Link] = []
        if (batch := trace.stages.execution) is not None and batch.started_ns:
            links.append(Link(self._executed(batch, trace, context)))
        linked = "queue" if trace.stages.outcome == "joined" else "execute"  # it waited for another's
        for name, start, end in _stages(trace):
            yield self._span(
                name,
                _context(ids.trace_id, random.getrandbits(64), state),
                _Times(start + epoch, end + epoch),
                parent=context,
                attributes=_of_batch(batch) if batch is not None and name == "execute" else None,
                links=links if name == linked else (),
            )

    def batches(self, *, every: bool = False) -> Iterator[ReadableSpan]:
        """The batches that are over and whose members have been seen, or for whose others there is no more waiting."""
        now = time.monotonic()
        for key, shared in list(self._shared.items()):
            age = now - shared.seen_at
            seen = len(shared.links) >= shared.execution.requests or age > _OTHERS_S
            if (shared.execution.finished_ns and seen) or every or age > _ENDLESS_S:
                del self._shared[key]
                yield from self._batch(shared)

    def _epoch(self) -> int:
        """What makes a time stamp one since the epoch: always the same, until somebody sets the clock.

        So a batch begins to the nanosecond when its members' execution does. This thread may lose its turn between the
        readings of two clocks, but hardly three times.
        """
        if abs(_offset() - self._offset) > _CLOCK_SET_NS:
            offset = max(_offset(), _offset(), _offset())
            if abs(offset - self._offset) > _CLOCK_SET_NS:
                self._offset = offset
        return self._offset

    def _own_span(self, trace: CallTrace, context: SpanContext, times: _Times) -> ReadableSpan:
        code = trace.status.code.name if trace.status else "OK"
        attributes: dict[str, str | int | bool] = {}
        if trace.position < 0:
            attributes |= self._server | {"rpc.system.name": "grpc", "rpc.method": trace.rpc}
            attributes["rpc.response.status_code"] = code
        else:
            attributes |= {"tensorgate.stream.position": trace.position, "tensorgate.status_code": code}
        attributes |= _of_request(trace)
        status, events = _UNSET, []
        if trace.status:
            attributes["error.type"] = code
            event = {"exception.type": code, "exception.message": trace.status.details}
            events.append(Event("exception", event, timestamp=times.end))
            if code in FAULTS:
                status = Status(StatusCode.ERROR, trace.status.details)
        parent = None
        if parent_id := cast("Ids", trace.stages.span).parent_id:
            parent = _context(context.trace_id, parent_id, context.trace_state, remote=trace.within is None)
        return ReadableSpan(
            name=trace.rpc if trace.position < 0 else "request",
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=SpanKind.SERVER if trace.position < 0 else SpanKind.INTERNAL,
            status=status,
            start_time=times.start,
            end_time=times.end,
            instrumentation_scope=self._scope,
        )

    def _executed(self, batch: Execution, trace: CallTrace, member: SpanContext) -> SpanContext:
        """The span of the batch that a call was executed in."""
        batch.span = batch.span or (random.getrandbits(128), random.getrandbits(64))
        if not batch.spanned:
            batch.spanned = True
            self._shared[id(batch)] = _Shared(batch, _context(*batch.span), (trace.model, trace.version, trace.backend))
        shared = self._shared.get(id(batch))
        if shared and trace.stages.outcome != "joined":
            shared.links.append(Link(member))
        return _context(*batch.span)

    def _batch(self, shared: _Shared) -> Iterator[ReadableSpan]:
        epoch = self._epoch()
        batch, context = shared.execution, shared.context
        end = batch.finished_ns or batch.executed_ns or batch.assembled_ns or batch.started_ns
        name, version, backend = shared.model
        model = {"tensorgate.model.name": name, "tensorgate.model.version": version, "tensorgate.backend": backend}
        failed = Status(StatusCode.ERROR, "the model failed on it")
        yield self._span(
            "batch",
            context,
            _Times(batch.started_ns + epoch, end + epoch),
            attributes=model | _of_batch(batch),
            links=shared.links,
            status=None if batch.finished_ns else failed,
        )
        steps = ("assemble", batch.started_ns, batch.assembled_ns), ("infer", batch.assembled_ns, batch.executed_ns)
        for step, began, ended in (*steps, ("split", batch.executed_ns, batch.finished_ns)):
            if ended:
                below = _context(context.trace_id, random.getrandbits(64))
                yield self._span(step, below, _Times(began + epoch, ended + epoch), parent=context)

    def _span(  # noqa: PLR0913  # what a span is made of
        self,
        name: str,
        context: SpanContext,
        times: _Times,
        *,
        parent: SpanContext | None = None,
        attributes: Attributes | None = None,
        links: list[Link] | tuple[()] = (),
        status: Status | None = None,
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes or {},
            links=links,
            status=status or _UNSET,
            start_time=times.start,
            end_time=times.end,
            instrumentation_scope=self._scope,
        )


_UNSET = Status(StatusCode.UNSET)

_CLOCK_SET_NS = 1_000_000
"""A clock that is off by more has been set."""

_OTHERS_S = 1.0
"""How long a batch that is over waits for members that may not be traced."""

_ENDLESS_S = 60.0
"""After which it counts as failed: its model may hang."""


def _offset() -> int:
    return time.time_ns() - time.perf_counter_ns()


def _context(trace_id: int, span_id: int, state: TraceState | None = None, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, _FLAGS, state)


def _of_request(trace: CallTrace) -> Attributes:
    attributes = {
        "tensorgate.model.name": trace.model,
        "tensorgate.model.version": trace.version,
        "tensorgate.backend": trace.backend,
        "tensorgate.request.id": trace.request_id,
        "tensorgate.cache": trace.stages.outcome,
    }
    return {key: value for key, value in attributes.items() if value}


def _of_batch(batch: Execution) -> dict[str, str | int | bool]:
    return {
        "tensorgate.instance": batch.instance,
        "tensorgate.batch.requests": batch.requests,
        "tensorgate.batch.size": batch.rows,
        "tensorgate.batch.padding": batch.padding,
    }


def _stages(trace: CallTrace) -> Iterator[tuple[str, int, int]]:
    """The stages that a call went through, as far as it came: name, start, end."""
    stages, batch, ended = trace.stages, trace.stages.execution, trace.ended
    at = stages.received
    if stages.cache:
        yield "cache", at, stages.cache
        at = stages.cache
        if stages.outcome == "hit":
            return
        if stages.outcome == "joined":  # another call's computation, which began before
            yield "queue", at, ended
            return
    if not stages.decode:
        return
    yield "decode", at, stages.decode
    began = batch.started_ns if batch is not None else 0
    yield "queue", stages.decode, min(began or ended, ended)
    if batch is None or not began or began >= ended:
        return
    finished = min(batch.finished_ns or ended, ended)
    yield "execute", began, finished
    if stages.encode:
        yield "encode", finished, stages.encode
