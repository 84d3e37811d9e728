"""What is told of each call once it is over: its trace, and its line in the access log."""

from __future__ import annotations

import time
from dataclasses import dataclass

from grpc import StatusCode

from gateway.logs import AccessLog, ServerLog
from gateway.status import CANCELLED, Status
from gateway.traces import Traces
from gateway.tracing import CallTrace

_TOO_LARGE = Status(StatusCode.RESOURCE_EXHAUSTED, "the response is larger than a message may be")
_EXPIRED = Status(StatusCode.DEADLINE_EXCEEDED, "the caller's deadline has passed")
_AHEAD, _MOST_AHEAD_S = 0.1, 0.02
"""By which share of its time a caller may give up before its deadline as we know it, and by how much at most: its clock
began to run as it sent the call."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Watches calls.

    Attributes:
        traces: which of them are traced.
        log: of the server.
        access: the access log, if it is wanted.
        max_message_bytes: of a response.
    """

    traces: Traces
    log: ServerLog
    access: AccessLog | None
    max_message_bytes: int

    @property
    def on(self) -> bool:
        """Whether anybody wants to know of calls."""
        return self.access is not None or self.traces.tracer.on

    def begin(self, call: CallTrace) -> None:
        """A call has come, and it is known which model is meant, if any."""
        if self.traces.tracer.on:
            self.traces.tracer.begin(call)

    def end(self, call: CallTrace, answer: bytes | Status, rows: int | None = None) -> None:
        """A call has been answered, or its caller is gone (`CANCELLED`).

        Args:
            call: which.
            answer: as the servicer gave it to the transport.
            rows: of an inference.
        """
        status = self._status(call, answer)
        if self.traces.tracer.on:
            self.traces.tracer.end(call, status)
        if self.access:
            self.access.ended(
                call.rpc.rpartition("/")[2],
                status.code.name if status else "OK",
                call.stages.received,
                **call.about(),
                rows=rows,
            )

    def _status(self, call: CallTrace, answer: bytes | Status) -> Status | None:
        """What the caller gets to see; None for OK."""
        if answer is CANCELLED:
            timeout_s = call.deadline - call.stages.received / 1e9
            if time.perf_counter() >= call.deadline - min(_AHEAD * timeout_s, _MOST_AHEAD_S):
                return _EXPIRED
        if isinstance(answer, Status):
            return answer
        return _TOO_LARGE if len(answer) > self.max_message_bytes else None  # the transport says so in its place
