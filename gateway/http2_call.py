"""One call of any number of messages on an HTTP/2 connection: bytes become messages, which leave as there is room."""

from __future__ import annotations

import asyncio
import time

from gateway.errors import InvalidRequest, RequestTooLarge
from gateway.http2 import WINDOW, Connection
from gateway.http2_frames import CANCEL, NO_ERROR
from gateway.http2_headers import BEGINNING, Head, trailers
from gateway.http2_messages import PREFIX, unpacked
from gateway.status import Status


class Call:
    """A call. Whoever serves it reads and writes; its connection does the rest.

    Args:
        connection: that it came on.
        number: of its stream.
        head: what the caller has said.
        limit: bytes of a request.

    Attributes:
        path: of the method.
        deadline: when the caller stops waiting (`time.perf_counter`), infinite if it does not say.
        window, credit: as `http2_outgoing.Stream`'s.
        task: what serves it.
    """

    task: asyncio.Task[None]

    def __init__(self, connection: Connection, number: int, head: Head, limit: int) -> None:
        self._connection = connection
        self._number = number
        self._encoding = head.encoding
        self._limit = limit
        self.path = head.path
        self.deadline = time.perf_counter() + head.timeout_s
        self.window = 0
        self.credit = WINDOW
        self._half_closed = False
        self._in = bytearray()
        self._taken = 0
        self._unacknowledged = 0
        self._arrived = asyncio.Event()
        self._out = bytearray()
        self._has_room = asyncio.Event()
        self._begun = False
        self._gone = False

    def __repr__(self) -> str:
        return f"<Call {self.path} in={len(self._in) - self._taken} out={len(self._out)}>"

    async def read(self) -> bytes | None:
        """The next message; None after the last one.

        Raises:
            RequestTooLarge: it is over the limit, packed or unpacked.
            InvalidRequest: the bytes are no message.
            NotOffered: it is packed in a way that we do not know.
        """
        while (message := self._next()) is None:
            if self._half_closed:
                if self._in:
                    raise InvalidRequest("the stream ended inside a message")
                return None
            self._acknowledge()
            self._arrived.clear()
            await self._arrived.wait()
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; returns when there is room for another."""
        self._out += PREFIX.pack(0, len(message))
        self._out += message
        self._connection.wants_to_push(self, self._number)
        while len(self._out) >= WINDOW:
            await self._room()

    async def flush(self) -> None:
        """Return when everything has been handed to the connection."""
        while self._out:
            await self._room()

    async def _room(self) -> None:
        self._has_room.clear()
        await self._has_room.wait()

    def receive(self, data: bytes, start: int, end: int, last: int) -> None:
        """As `http2_outgoing.Stream.receive`."""
        if self._half_closed:
            return
        self._in += memoryview(data)[start:end]
        self._unacknowledged += end - start
        self._half_closed = self._half_closed or last > 0
        self._arrived.set()

    def push(self) -> None:
        """As `http2_outgoing.Stream.push`."""
        if self._gone:
            return
        if self._out and not self._begun:
            self._begun = True
            self._connection.send_headers(self._number, BEGINNING, ended=False)
        room = self._connection.room(self)
        with memoryview(self._out) as view:
            data = bytes(view[:room])
        del self._out[: self._connection.send_data(self, self._number, memoryview(data))]
        if self._out:
            self._connection.waits(self, self._number)
        self._has_room.set()

    def lost(self) -> None:
        """As `http2_outgoing.Stream.lost`."""
        self._gone = True
        self.task.cancel()

    def end(self, status: Status | None) -> None:
        """Tell the caller that it is over, with what is still to leave cut off."""
        if self._gone:
            return
        self._gone = True
        connection, number = self._connection, self._number
        if self._out:
            connection.reset(number, CANCEL)
        else:
            connection.send_headers(number, trailers(status, begun=self._begun), ended=True)
            if not self._half_closed:
                connection.reset(number, NO_ERROR)  # so that the caller stops sending
        connection.close(number)

    def _acknowledge(self) -> None:
        """Let the caller send as much again."""
        if self._unacknowledged:
            self._connection.grant(self._number, self._unacknowledged)
            self._unacknowledged = 0

    def _next(self) -> bytes | None:
        start = self._taken + PREFIX.size
        if len(self._in) < start:
            return None
        packed, length = PREFIX.unpack_from(self._in, self._taken)
        if length > self._limit:
            raise RequestTooLarge(length, self._limit)
        end = start + length
        if len(self._in) < end:
            return None
        message = bytes(memoryview(self._in)[start:end])
        self._taken = end
        if end == len(self._in) or end > WINDOW:
            del self._in[:end]
            self._taken = 0
        return unpacked(message, self._encoding, self._limit) if packed else message
