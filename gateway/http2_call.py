"""One gRPC call on an HTTP/2 connection: bytes that have arrived become messages, messages leave as there is room."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from math import inf
from typing import TypeAlias
from urllib.parse import quote

from h2.connection import H2Connection
from h2.errors import ErrorCodes

from gateway.errors import InvalidRequest, NotOffered, RequestTooLarge
from gateway.status import Status

WINDOW = 1 << 20
"""Bytes of a call that may be on their way to us, or wait to leave."""

_PATIENCE_S = 300.0
"""How long a caller may take nothing while responses wait. The transport in front does not tell of callers who are gone
if it still holds responses for them, so that these would wait for ever."""

_PREFIX = struct.Struct(">BI")
_BEGINNING = (
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", "identity,deflate,gzip"),
)
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_ANY_FORMAT = 47
"""zlib's number for: gzip or zlib, whichever it is."""

Headers: TypeAlias = Mapping[str, str]


class Call:
    """A call. Whoever serves it reads and writes; its connection does the rest.

    Args:
        h2: the connection's.
        number: of the HTTP/2 stream.
        headers: what the caller sent first.
        max_message_bytes: of a request.
        wants_to_send: told so with its number.

    Attributes:
        deadline: when the caller stops waiting (`time.perf_counter`), infinite if it does not say.
        half_closed: whether the caller sends nothing more.
    """

    def __init__(
        self,
        h2: H2Connection,
        number: int,
        headers: Headers,
        max_message_bytes: int,
        wants_to_send: Callable[[int], None],
    ) -> None:
        self._h2 = h2
        self._number = number
        self._limit = max_message_bytes
        self.headers = headers
        self.path = headers.get(":path", "")
        self.deadline = time.perf_counter() + _timeout_s(headers.get("grpc-timeout", ""))
        self.half_closed = False
        self._wants_to_send = wants_to_send
        self._in = bytearray()
        self._taken = 0
        self._unacknowledged = 0
        self._arrived = asyncio.Event()
        self._out = bytearray()
        self._has_room = asyncio.Event()
        self._begun = False

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
            if self.half_closed:
                if self._in:
                    raise InvalidRequest("the stream ended inside a message")
                return None
            self._acknowledge()
            self._arrived.clear()
            await self._arrived.wait()
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; returns when there is room for another.

        Raises:
            TimeoutError: the caller takes none any more.
        """
        self._out += _PREFIX.pack(0, len(message))
        self._out += message
        self._wants_to_send(self._number)
        while len(self._out) >= WINDOW:
            await self._room()

    async def flush(self) -> None:
        """Return when everything has been handed to the connection.

        Raises:
            TimeoutError: the caller takes nothing any more.
        """
        while self._out:
            await self._room()

    async def _room(self) -> None:
        self._has_room.clear()
        await asyncio.wait_for(self._has_room.wait(), _PATIENCE_S)

    def receive(self, data: bytes, controlled: int) -> None:
        """Data has arrived that counts for `controlled` bytes of the window."""
        self._in += data
        self._unacknowledged += controlled
        self._arrived.set()

    def receive_end(self) -> None:
        """No more will arrive."""
        self.half_closed = True
        self._arrived.set()

    def send(self) -> bool:
        """Hand to the connection what the peer has room for; whether that was all."""
        if self._out:
            self._begin()
        sent = 0
        while sent < len(self._out) and (room := self._h2.local_flow_control_window(self._number)) > 0:
            end = sent + min(room, self._h2.max_outbound_frame_size)
            self._h2.send_data(self._number, bytes(memoryview(self._out)[sent:end]))
            sent = min(end, len(self._out))
        del self._out[:sent]
        self._has_room.set()
        return not self._out

    def end(self, status: Status | None) -> None:
        """Tell the caller that it is over, with what is still to leave cut off."""
        if self._out:
            self._h2.reset_stream(self._number, ErrorCodes.CANCEL)
            return
        # Without a response everything is in one block, by which clients know that they may try again.
        trailers = [] if self._begun else list(_BEGINNING)
        trailers.append(("grpc-status", str(status.code.value[0] if status else 0)))
        if status:
            trailers.append(("grpc-message", quote(status.details, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"\\")))
        self._h2.send_headers(self._number, trailers, end_stream=True)
        if not self.half_closed:
            self._h2.reset_stream(self._number, ErrorCodes.NO_ERROR)  # so that the caller stops sending

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._h2.send_headers(self._number, _BEGINNING)

    def _acknowledge(self) -> None:
        """Let the caller send as much again."""
        if self._unacknowledged:
            self._h2.acknowledge_received_data(self._unacknowledged, self._number)
            self._unacknowledged = 0
            self._wants_to_send(self._number)

    def _next(self) -> bytes | None:
        start = self._taken + _PREFIX.size
        if len(self._in) < start:
            return None
        packed, length = _PREFIX.unpack_from(self._in, self._taken)
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
        return _unpacked(message, self.headers.get("grpc-encoding", ""), self._limit) if packed else message


def _unpacked(message: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in ("gzip", "deflate"):
        raise NotOffered(f"compression '{encoding}': send identity, gzip or deflate")
    inflater = zlib.decompressobj(_ANY_FORMAT)
    try:
        unpacked = inflater.decompress(message, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"a message is not what {encoding} makes") from None
    if len(unpacked) > limit:
        raise RequestTooLarge(len(unpacked), limit)
    if not inflater.eof:
        raise InvalidRequest(f"a message that {encoding} has made ends too early")
    return unpacked


def _timeout_s(text: str) -> float:
    """Seconds that a `grpc-timeout` header stands for; infinite without one."""
    digits, unit = text[:-1], text[-1:]
    return int(digits) * _SECONDS[unit] if digits.isdecimal() and unit in _SECONDS else inf
