"""One ModelStreamInfer stream: requests in, responses out, in the order that their senders asked for.

Whoever carries the stream reads messages while there is room and hands them to `receive`, and sends what `next` gives.
Requests take the same way as those of unary calls, all at once. An answered one counts until its response has been
sent: a stream whose reader is slow fills its window and is then no longer read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Self

from gateway.decode import is_unordered
from gateway.encode import encode_stream_error
from gateway.errors import ModelNotReady, ResponseTooLarge, let_go
from gateway.inference import Inference
from gateway.logs import about
from gateway.message import UNREADABLE, read
from gateway.model import FindModel, ServedModel
from gateway.observing import Observer
from gateway.request import Stages
from gateway.state import ServerState
from gateway.status import CANCELLED, Status, status_of
from gateway.tracing import CallTrace, Metadata, parent_of
from tensorgate_client import framing
from tensorgate_client.wire import inference_pb2 as pb

_log = logging.getLogger(__name__)

RPC = "ModelStreamInfer"
_NAME = f"{pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{RPC}"

_ERROR_AS_STATUS = "triton_grpc_error"
"""Metadata; `true` ends the stream with the status of the first request that fails. Triton's name."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may hold.

    Attributes:
        window: requests under way; one counts until its response has been sent.
        max_message_bytes: of a response. Nothing is read either while requests and responses of so many bytes are held.
    """

    window: int
    max_message_bytes: int


class Caller(NamedTuple):
    """Whose a stream is.

    Attributes:
        deadline: when the caller stops waiting (`time.perf_counter`).
        metadata: what came with the call.
    """

    deadline: float
    metadata: Metadata


class _Pending:
    """A request whose response has not been sent.

    Attributes:
        stream: that it came in.
        size: bytes that are held for it.
        stages, message, model: of the request, as far as they are known.
        trace: what is kept of it, if anybody wants to know.
        inference: what computes its answer.
        unordered: whether its response may overtake others.
        answer: once there is one.
    """

    __slots__ = ("answer", "inference", "message", "model", "size", "stages", "stream", "trace", "unordered")

    def __init__(self, stream: Stream, size: int) -> None:
        self.stream = stream
        self.size = size
        self.stages = Stages()
        self.message = UNREADABLE
        self.model: ServedModel | None = None
        self.trace: CallTrace | None = None
        self.inference: Inference | None = None
        self.unordered = False
        self.answer: bytes | Status | None = None

    def told(self, result: bytes | Exception) -> None:
        """Its model's answer."""
        self.stream.settle(self, result)


class Stream:
    """A stream, from its first message until the `with` block is left, which drops what is still under way.

    Args:
        find: model by name and version.
        state: of the server.
        observer: told of it and of each of its requests.
        limits: of this stream.
        caller: whose it is.
    """

    def __init__(
        self, find: FindModel, state: ServerState, observer: Observer, limits: StreamLimits, caller: Caller
    ) -> None:
        self._find = find
        self._state = state
        self._limits = limits
        self._deadline = caller.deadline
        self._error_as_status = (_ERROR_AS_STATUS, "true") in [
            (key, str(value).lower()) for key, value in caller.metadata
        ]
        self._observer = observer
        self._parent = parent_of(caller.metadata) if observer.on else None
        self._call = CallTrace(_NAME, Stages(), self._parent, caller.deadline) if observer.on else None
        self._position = 0
        self._final: bytes | Status = CANCELLED
        self._live: set[_Pending] = set()
        self._in_order: deque[_Pending] = deque()
        self._ready: deque[bytes | Status] = deque()
        self._pending = 0
        self._bytes = 0
        self._latest = 0  # bytes of the latest response: those to come are taken to be as large
        self._status: Status | None = None
        self._has_room = asyncio.Event()
        self._changed = asyncio.Event()
        self.ended = False

    def __repr__(self) -> str:
        return f"<Stream pending={self._pending} ready={len(self._ready)} bytes={self._bytes} ended={self.ended}>"

    def __enter__(self) -> Self:
        self._state.on_drain.add(self._drain)
        if self._call:
            self._observer.begin(self._call)
        if self._state.draining:
            self._drain()
        return self

    def __exit__(self, *_: object) -> None:
        self._state.on_drain.discard(self._drain)
        for pending in self._live:
            if pending.inference:
                pending.inference.cancel()
            self._tell(pending, CANCELLED)
        self._live.clear()
        self._in_order.clear()  # they know the stream: what they hold would wait for the garbage collector
        self._state.leave(self._pending)
        if self._call and self._observer.traces.tracer.on:  # the access log is about its requests
            self._observer.traces.tracer.end(self._call, self._final if isinstance(self._final, Status) else None)

    @property
    def full(self) -> bool:
        """Whether to read nothing more for now."""
        return self._pending >= self._limits.window or self._bytes >= self._limits.max_message_bytes

    async def room(self) -> None:
        """Return when it is no longer full."""
        while self.full:
            self._has_room.clear()
            await self._has_room.wait()

    def receive(self, data: bytes) -> None:
        """Begin a serialized ModelInferRequest; whatever is wrong with it becomes its answer."""
        if self.ended:  # the stream's status tells that it was not taken up
            return
        pending = _Pending(self, max(len(data), self._latest))
        self._pending += 1
        self._bytes += pending.size
        self._state.enter()
        try:
            message = pending.message = read(data)
            self._observe(pending)
            model = pending.model = self._find(message.name, message.version)
            if pending.trace:
                pending.trace.version, pending.trace.backend = model.described
            pending.unordered = model.is_unordered(message)
        except Exception as error:  # as for a unary call: nothing but a status reaches the caller
            if not pending.trace:
                self._observe(pending)
            pending.unordered = is_unordered(pending.message)
            self._enqueue(pending)
            self.settle(pending, error)
            return
        self._enqueue(pending)
        self._live.add(pending)
        inference = model.infer(message, pending.stages, pending.told, self._deadline, windowed=True)
        if pending.answer is None:
            pending.inference = inference
            pending.size += inference.shared_bytes
            self._bytes += inference.shared_bytes

    def end(self, status: Status | None = None) -> None:
        """No more comes; `next` gives `status` after the last response."""
        if not self.ended:
            self.ended, self._status = True, status
            self._changed.set()

    def break_off(self, error: Exception) -> None:
        """End after what is ready, with the status that `error` is told as: a fault of ours leaves nobody waiting."""
        self._ready.append(status_of(error, RPC))
        self._changed.set()

    async def next(self) -> bytes | Status | None:
        """The next response to send; after the last one the status to end with, None if all is well."""
        while not self._ready:
            if self.ended and not self._pending:
                self._final = self._status or b""
                return self._status
            self._changed.clear()
            await self._changed.wait()
        response = self._ready.popleft()
        if isinstance(response, Status):
            self._final = response
        return response

    def sent(self, response: bytes) -> None:
        """A response has left."""
        self._pending -= 1
        self._bytes -= len(response)
        self._state.leave()
        self._has_room.set()

    def _observe(self, pending: _Pending) -> None:
        """Keep something of a request, if anybody wants to know."""
        if not self._observer.on:
            return
        within = self._call.stages.span if self._call else None
        call = CallTrace(_NAME, pending.stages, self._parent, self._deadline, within, self._position)
        call.name(pending.message.name, pending.message.version, pending.message.id)
        self._position += 1
        self._observer.begin(call)
        pending.trace = call

    def _tell(self, pending: _Pending, result: bytes | Status) -> None:
        """Let those know who want to that a request is over."""
        if pending.trace:
            model = pending.model if self._observer.access else None
            self._observer.end(pending.trace, result, model.rows(pending.message) if model else None)

    def _drain(self) -> None:
        self.end(status_of(ModelNotReady("the server is shutting down: try another one"), RPC))

    def _enqueue(self, pending: _Pending) -> None:
        if not pending.unordered:
            self._in_order.append(pending)

    def settle(self, pending: _Pending, result: bytes | Exception) -> None:
        """A request has its answer; it, and those that waited for it, may be sent if none is missing before them."""
        told: bytes | Status
        answer: bytes | Status
        if isinstance(result, bytes):
            told = answer = framing.stream_response(result)
            if len(answer) > self._limits.max_message_bytes:
                result = ResponseTooLarge(len(answer), self._limits.max_message_bytes)
        if isinstance(result, Exception):
            told, answer = self._failed(pending, result)
        elif _log.isEnabledFor(logging.DEBUG):
            version = pending.model.version if pending.model else None
            _log.debug("%s", pending.stages, extra=about(**pending.message.about(version), rpc=RPC))
        self._live.discard(pending)
        pending.inference = None
        self._make_ready(pending, answer)
        self._tell(pending, told)

    def _failed(self, pending: _Pending, error: Exception) -> tuple[Status, bytes | Status]:
        """The status that a unary call would have had, and what is sent in this stream."""
        message, span = pending.message, pending.stages.span
        version = str(pending.model.version) if pending.model else message.version
        fields = {"model": message.name, "version": version, "request_id": message.id}
        status = status_of(error, RPC, **fields, trace_id=span.hex_trace_id if span else "")
        let_go(error)
        if self._error_as_status:
            return status, status
        head = pb.ModelInferResponse(id=message.id, model_name=message.name, model_version=version)
        return status, encode_stream_error(head, status.code.name, status.details)

    def _make_ready(self, pending: _Pending, answer: bytes | Status) -> None:
        if isinstance(answer, bytes):
            self._bytes += len(answer) - pending.size
            self._latest = len(answer)
        pending.answer = answer
        if pending.unordered:
            self._ready.append(answer)
        while self._in_order and (first := self._in_order[0].answer) is not None:
            self._ready.append(first)
            self._in_order.popleft()
        self._changed.set()
        self._has_room.set()
