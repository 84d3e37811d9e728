"""One unary call on an HTTP/2 connection: a message in, a message or a status out."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from math import inf

from grpc import StatusCode

from gateway.errors import GatewayError, InvalidRequest, RequestTooLarge
from gateway.http2 import WINDOW, Connection
from gateway.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, NO_ERROR, frame
from gateway.http2_headers import ALL_WELL, BEGINNING, Head, trailers
from gateway.http2_messages import PREFIX, unpacked
from gateway.status import Status, status_of
from gateway.transport import BROKEN, LATE, STOPPED, Method, Pending, Shortcut, too_large

_log = logging.getLogger(__name__)

_SMALL = (1 << 14) - PREFIX.size
"""Bytes of a response that fits a frame of any peer's."""

_SMALL_PART = 4096
"""Below, bytes are copied: a view would keep all that arrived with them."""

_MISSING = Status(StatusCode.INTERNAL, "the request is missing")
_TOO_MANY = Status(StatusCode.INTERNAL, "more than one request in a unary call")

# A response in one go: what stands before its message and behind it.
_BEGINS, _ENDS = frame(HEADERS, END_HEADERS, 0, BEGINNING), frame(HEADERS, END_HEADERS | END_STREAM, 0, ALL_WELL)
_FRONT = struct.Struct(f">5sL{len(BEGINNING)}sHBBBLBL")
_BACK = struct.Struct(f">5sL{len(ALL_WELL)}s")


class Unary:
    """A unary call.

    Args:
        connection: that it came on.
        number: of its stream.
        head: what the caller has said.
        method: what answers it, and what may know the answer at once.
        limit: bytes of a request or response.

    Attributes:
        window, credit: as `http2_outgoing.Stream`'s.
        answered: whether there is an answer, which may not have left yet.
    """

    __slots__ = (
        "_connection", "_deadline", "_ended", "_head", "_limit", "_method", "_number", "_out", "_parts", "_pending",
        "_size", "_timer", "_whole", "answered", "credit", "window",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, number: int, head: Head, method: tuple[Method, Shortcut | None], limit: int
    ) -> None:
        self._connection = connection
        self._number = number
        self._head = head
        self._method = method
        self._limit = limit
        self._deadline = inf if head.timeout_s == inf else time.perf_counter() + head.timeout_s
        self._parts: list[memoryview | bytearray] = []
        self._size = 0
        self._whole = 0
        self._ended = False
        self._pending: Pending | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._out: list[memoryview] = []
        self.answered = False
        self.window = 0
        self.credit = WINDOW

    def receive(self, data: bytes, start: int, end: int, last: int) -> None:
        """As `http2_outgoing.Stream.receive`."""
        if self.answered or self._ended:  # nothing that follows an end begins another call
            self._ended = self._ended or last > 0
            return
        size = end - start
        if last and not self._parts and size >= PREFIX.size:
            packed, length = PREFIX.unpack_from(data, start)
            if not packed and length == size - PREFIX.size:
                self._ended = True
                self._begin(data[start + PREFIX.size : end])
                return
        try:
            self._gather(data, start, end, ended=last > 0)
        except GatewayError as error:
            self.answer(status_of(error, self._head.path))

    def _gather(self, data: bytes, start: int, end: int, *, ended: bool) -> None:
        """Keep what has arrived, and begin if that is all."""
        self._ended = ended
        size = end - start
        # The first part has the whole prefix, or grows until it has.
        if size >= _SMALL_PART and (not self._parts or self._size >= PREFIX.size):
            self._parts.append(memoryview(data)[start:end])
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data[start:end]
        else:
            self._parts.append(bytearray(data[start:end]))
        self._size += size
        if not self._whole and self._size >= PREFIX.size:
            self._expect()
        if self._whole and self._size > self._whole:
            self.answer(_TOO_MANY)
        elif ended and not self._size:
            self.answer(_MISSING)
        elif ended and self._size != self._whole:
            raise InvalidRequest("the call ended inside its message")
        elif ended:
            self._begin(self._message())

    def _expect(self) -> None:
        """Make room for the whole message, now that its length is known."""
        _, length = PREFIX.unpack_from(self._parts[0])
        if length > self._limit:
            raise RequestTooLarge(length, self._limit)
        self._whole = PREFIX.size + length
        if self._whole > WINDOW:
            self._connection.grant(self._number, self._whole - WINDOW)

    def _message(self) -> bytes:
        packed = self._parts[0][0]
        self._parts[0] = self._parts[0][PREFIX.size :]
        message = b"".join(self._parts)
        self._parts.clear()
        return unpacked(message, self._head.encoding, self._limit) if packed else message

    def _begin(self, message: bytes) -> None:
        method, shortcut = self._method
        try:
            if shortcut and (response := shortcut(message)) is not None:
                self.answer(response)
                return
            pending = method(message, self._deadline, self._head.metadata, self.answer)
        except Exception:  # whatever happened, nobody is left waiting
            _log.exception("%s failed", self._head.path)
            self.answer(BROKEN)
            return
        if pending and not self.answered:
            self._pending = pending
            if self._deadline < inf:
                left = max(0.0, self._deadline - time.perf_counter())
                self._timer = asyncio.get_running_loop().call_later(left, self._give_up, LATE)

    def answer(self, answer: bytes | Status) -> None:
        """Give the caller its response or status."""
        if self.answered:
            return
        self._settle()
        if isinstance(answer, Status):
            self._fail(answer)
        elif len(answer) > self._limit:
            self._fail(too_large("response", answer, self._limit))
        else:
            self._respond(answer)

    def _respond(self, answer: bytes) -> None:
        connection, number, length = self._connection, self._number, len(answer)
        size = length + PREFIX.size
        room = connection.first_window + self.window  # as `Outgoing.room`, for speed
        fits = length <= _SMALL and size <= room and size <= connection.window
        if fits and connection.may_write and not connection.resized:
            connection.window -= size
            front = _FRONT.pack(_BEGINS[:5], number, BEGINNING, size >> 8, size & 255, DATA, 0, number, 0, length)
            connection.write(b"".join((front, answer, _BACK.pack(_ENDS[:5], number, ALL_WELL))))
            connection.close(number)
        else:
            connection.send_headers(number, BEGINNING, ended=False)
            self._out = [memoryview(PREFIX.pack(0, length)), memoryview(answer)]
            self.push()

    def push(self) -> None:
        """As `http2_outgoing.Stream.push`."""
        while self._out:
            sent = self._connection.send_data(self, self._number, self._out[0])
            if sent < len(self._out[0]):
                self._out[0] = self._out[0][sent:]
                return
            del self._out[0]
        self._connection.send_headers(self._number, ALL_WELL, ended=True)
        self._connection.close(self._number)

    def _fail(self, status: Status) -> None:
        self._connection.send_headers(self._number, trailers(status, begun=False), ended=True)
        if not self._ended:
            self._connection.reset(self._number, NO_ERROR)  # so that the caller stops sending
        self._connection.close(self._number)

    def _settle(self) -> Pending | None:
        """There is nothing more to wait for; what has been waited for, if anything."""
        self.answered = True
        self._parts.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, None
        return pending

    def _give_up(self, status: Status) -> None:
        if pending := self._settle():
            pending.cancel()
        self._fail(status)

    def stop(self) -> None:
        """Answer now that the server goes down, whatever becomes of it."""
        if not self.answered:
            self._give_up(STOPPED)

    def lost(self) -> None:
        """As `http2_outgoing.Stream.lost`."""
        self._out = []
        if not self.answered and (pending := self._settle()):
            pending.cancel()
        self.answered = True
