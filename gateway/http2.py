"""One HTTP/2 connection (RFC 9113), as a server of gRPC needs it: frames in, frames out, and how much may be under way.

All of it happens on the event loop, and on whatever has arrived at once: no thread, task or future stands between the
socket and a call. What a call is, is its stream's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias, cast

from gateway.http2_departing import Departing
from gateway.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MOST,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RESET,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    Violation,
    frame,
    number_in,
    unpadded,
)
from gateway.http2_headers import LONGEST, LONGEST_PACKED, NO_TABLE, Head, Heads
from gateway.http2_incoming import LARGEST_FRAME, Incoming
from gateway.http2_outgoing import Stream

_log = logging.getLogger(__name__)

STREAMS = 1024
"""Calls that a connection may have open."""

WINDOW = 1 << 20
"""Bytes of a call that may be on their way to us, unless it says that it takes more."""

_REFILL = 1 << 30
_UNSENT = 1 << 20
"""Bytes that may wait for a peer who takes nothing; then nothing more is read from it either."""

_OURS = b"".join(
    SETTING.pack(*setting)
    for setting in (
        (MAX_CONCURRENT_STREAMS, STREAMS),
        (INITIAL_WINDOW_SIZE, WINDOW),
        (MAX_FRAME_SIZE, LARGEST_FRAME),
        (MAX_HEADER_LIST_SIZE, LONGEST),
    )
)
_NO_HTTP2 = b"this port speaks gRPC, over HTTP/2 without an upgrade: use a gRPC client\n"


Open: TypeAlias = Callable[["Connection", int, Head], Stream]
"""Begins the call of a new stream."""


class Connection(Incoming, Departing):
    """A peer.

    Args:
        open_stream: begins a call.
        peers: it is among them as long as it is connected.
        age_s: when it takes no further calls.
    """

    def __init__(self, open_stream: Open, peers: set[Connection], age_s: float) -> None:
        Incoming.__init__(self)
        Departing.__init__(self)
        self._open_stream = open_stream
        self._peers = peers
        self._age_s = age_s
        self._retiring: asyncio.TimerHandle | None = None
        self._heads = Heads()
        self._block_of = (0, 0)  # stream of the headers that are not whole yet, and whether they end it
        self._consumed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `asyncio.Protocol`'s."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_UNSENT)
        self._loop = asyncio.get_running_loop()
        self._peers.add(self)
        if self._age_s < inf:
            self._retiring = self._loop.call_later(self._age_s, self.leave)

    def connection_lost(self, _: Exception | None) -> None:
        """As `asyncio.Protocol`'s."""
        self._peers.discard(self)
        if self._retiring:
            self._retiring.cancel()
        self.drop()

    def pause_writing(self) -> None:
        """As `asyncio.Protocol`'s."""
        self.may_write = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """As `asyncio.Protocol`'s."""
        self.may_write = True
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self.push()

    def begin(self) -> None:
        """As `Incoming.begin`."""
        self.write(frame(SETTINGS, 0, 0, _OURS))
        self.grant(0, MOST - DEFAULT_WINDOW)

    def turn_down(self) -> None:
        """As `Incoming.turn_down`: browsers show what this is."""
        self.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n")
        self.write(b"Content-Length: %d\r\n\r\n%b" % (len(_NO_HTTP2), _NO_HTTP2))
        self.finish()

    def handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """As `Incoming.handle`."""
        if handler := _HANDLERS.get(kind):
            handler(self, flags, number, payload)

    def receive(self, number: int, data: bytes, start: int, end: int, last: int) -> None:
        """As `Incoming.receive`."""
        size = end - start
        self._consumed += size
        if self._consumed > _REFILL:
            self.grant(0, self._consumed)
            self._consumed = 0
        if stream := self.streams.get(number):
            stream.credit -= size
            if stream.credit < 0:
                raise Violation(FLOW_CONTROL_ERROR, f"stream {number} sends more than it may")
            stream.receive(data, start, end, last)
            if len(self._out) >= self._piece:
                self.flush_early()
        elif number > self._latest or not number & 1:
            raise Violation(PROTOCOL_ERROR, f"data of stream {number}, which has not begun")

    def _padded(self, flags: int, number: int, payload: bytes) -> None:
        start, end = unpadded(payload, 0, len(payload))
        padding = (len(payload) - (end - start)).to_bytes(4, "big")  # it counts, too: the peer gets it back
        self.write(frame(WINDOW_UPDATE, 0, 0, padding) + frame(WINDOW_UPDATE, 0, number, padding))
        self.receive(number, payload, start, end, flags & END_STREAM)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        start, end = unpadded(payload, 0, len(payload)) if flags & PADDED else (0, len(payload))
        if flags & PRIORITIZED:
            start += 5
        block = payload[start:end] if (start, end) != (0, len(payload)) else payload
        if flags & END_HEADERS:
            self._begin(number, block, ended=bool(flags & END_STREAM))
        else:
            self.block, self._block_of = [block], (number, flags & END_STREAM)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self.block is None or number != self._block_of[0]:
            raise Violation(PROTOCOL_ERROR, "headers go on that have not begun")
        self.block.append(payload)
        if sum(map(len, self.block)) > LONGEST_PACKED or len(self.block) > 64:
            raise Violation(ENHANCE_YOUR_CALM, "headers without end")
        if flags & END_HEADERS:
            block, self.block = b"".join(self.block), None
            self._begin(number, block, ended=self._block_of[1] > 0)

    def _begin(self, number: int, block: bytes, *, ended: bool) -> None:
        head = self._heads.read(block)
        if stream := self.streams.get(number):  # trailers, of which gRPC has none from clients
            if ended:
                stream.receive(b"", 0, 0, END_STREAM)
            return
        if number <= self._latest:
            return  # of a call that is over
        if not number & 1:
            raise Violation(PROTOCOL_ERROR, f"a stream of number {number}")
        self._latest = number
        if len(self.streams) >= STREAMS or self._left:
            self.reset(number, REFUSED_STREAM)
        elif head.refusal:
            self.send_headers(number, head.refusal, ended=True)
            self.reset(number, NO_ERROR)
        else:
            stream = self.streams[number] = self._open_stream(self, number, head)
            if ended:
                stream.receive(b"", 0, 0, END_STREAM)

    def _reset(self, _: int, number: int, payload: bytes) -> None:
        number_in(payload)
        if stream := self.streams.get(number):
            self.close(number)
            stream.lost()
        elif number > self._latest or not number:
            raise Violation(PROTOCOL_ERROR, f"an end of stream {number}, which has not begun")

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise Violation(FRAME_SIZE_ERROR, "settings that are none")
        if flags & ACK:
            return
        for key, value in SETTING.iter_unpack(payload):
            if key == INITIAL_WINDOW_SIZE:
                if value > MOST:
                    raise Violation(FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                self.first_window = value
            elif key == MAX_FRAME_SIZE:
                if not 1 << 14 <= value < 1 << 24:
                    raise Violation(PROTOCOL_ERROR, f"frames of {value} bytes")
                self.largest_frame = min(value, LARGEST_FRAME)
            elif key == HEADER_TABLE_SIZE:
                self.resized = NO_TABLE
        self.write(frame(SETTINGS, ACK, 0, b""))
        self.push()

    def _push_promise(self, *_: object) -> None:
        raise Violation(PROTOCOL_ERROR, "a client that pushes")

    def _ping(self, flags: int, _: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Violation(FRAME_SIZE_ERROR, f"a ping of {len(payload)} bytes")
        if not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif self._leaving:
            self._leave_now()

    def _window_update(self, _: int, number: int, payload: bytes) -> None:
        more = number_in(payload)
        if not more:
            raise Violation(PROTOCOL_ERROR, "a window that grows by nothing")
        if not number:
            self.window += more
            if self.window > MOST:
                raise Violation(FLOW_CONTROL_ERROR, "a window that grows without end")
        elif stream := self.streams.get(number):
            stream.window += more
            if self.first_window + stream.window > MOST:
                raise Violation(FLOW_CONTROL_ERROR, "a window that grows without end")
        self.push()

    @property
    def knows(self) -> bool:
        """Whether the peer knows that it is to go elsewhere, if it is one at all."""
        return self._left or not self.begun or self._transport.is_closing()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def refuse(self, violation: Violation) -> None:
        """As `Incoming.refuse`."""
        _log.debug("a connection is closed: %s", violation)
        self._farewell(self._latest, violation.code, str(violation))
        self.finish()
        self.drop()


def _ignore(*_: Any) -> None:
    pass


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    DATA: Connection._padded,
    HEADERS: Connection._headers,
    PRIORITY: _ignore,
    RESET: Connection._reset,
    SETTINGS: Connection._settings,
    PUSH_PROMISE: Connection._push_promise,
    PING: Connection._ping,
    WINDOW_UPDATE: Connection._window_update,
    CONTINUATION: Connection._continuation,
}
"""What becomes of a frame: flags, stream and payload. Unknown ones are passed over."""
