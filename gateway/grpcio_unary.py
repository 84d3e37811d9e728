"""One unary call over gRPC's C core."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from grpc import StatusCode
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

from gateway.status import Status
from gateway.tracing import Metadata
from gateway.transport import BROKEN, STOPPED, Method, Pending, Shortcut, too_large

if TYPE_CHECKING:
    from gateway.grpcio import GrpcioTransport

_log = logging.getLogger(__name__)


class Unary:
    """A unary call. What is named after an event runs where events are taken, the rest on the event loop."""

    __slots__ = ("_call", "_deadline", "_message", "_metadata", "_method", "_pending", "_transport", "answered")

    def __init__(
        self,
        transport: GrpcioTransport,
        call: Any,
        method: tuple[Method, Shortcut | None],
        deadline: float,
        metadata: Metadata,
    ) -> None:
        self._transport = transport
        self._call = call
        self._method = method
        self._deadline = deadline
        self._metadata = metadata
        self._message = b""
        self._pending: Pending | None = None
        self.answered = False
        transport.calls.add(self)
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is None:
            self._answer(Status(StatusCode.INTERNAL, "the request is missing"))
            return
        shortcut = self._method[1]
        if shortcut and (response := shortcut(message)) is not None:
            self._answer(response)
            return
        self._message = message
        self._transport.hand(self._begin)

    def _begin(self) -> None:
        if self.answered:  # cancelled
            return
        try:
            pending = self._method[0](self._message, self._deadline, self._metadata, self._answer)
        except Exception:  # whatever happened, nobody is left waiting
            _log.exception("a call failed")
            self._answer(BROKEN)
            return
        if not self.answered:
            self._pending = pending

    def _answer(self, answer: bytes | Status) -> None:
        self.answered = True
        self._pending = None
        if not isinstance(answer, Status) and len(answer) > self._transport.limit:
            answer = too_large("response", answer, self._transport.limit)
        beginning = cygrpc.SendInitialMetadataOperation(None, 0)
        if isinstance(answer, Status):
            ending = cygrpc.SendStatusFromServerOperation((), answer.code.value[0], answer.details.encode(), 0)
            operations: tuple[Any, ...] = (beginning, ending)
        else:
            ending = cygrpc.SendStatusFromServerOperation((), 0, b"", 0)
            operations = beginning, cygrpc.SendMessageOperation(answer, 0), ending
        self._call.start_server_batch(operations, _sent)

    def _closed(self, event: Any) -> None:
        self._transport.calls.discard(self)
        if not self.answered and event.batch_operations[0].cancelled():
            self._transport.hand(self._cancel)

    def stop(self) -> None:
        """Answer now, whatever becomes of it."""
        if not self.answered:
            self._cancel()
            self._answer(STOPPED)

    def _cancel(self) -> None:
        """The caller is gone, or its deadline has passed."""
        self.answered = True
        pending, self._pending = self._pending, None
        if pending:
            pending.cancel()


def _sent(_: Any) -> None:
    """An answer has left, or nobody is there to take it."""
