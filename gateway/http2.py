"""One HTTP/2 connection (RFC 9113), as a server of gRPC needs it: frames in, frames out, and how much may be under way.

All of it happens on the event loop, and on whatever has arrived at once: no thread, task or future stands between the
socket and a call. What a call is, is its stream's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

from hpack import HPACKError

from gateway.http2_frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEAD,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MOST,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
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
from gateway.http2_headers import LONGEST, Head, Heads, refusal

_log = logging.getLogger(__name__)

STREAMS = 1024
"""Calls that a connection may have open."""

WINDOW = 1 << 20
"""Bytes of a call that may be on their way to us, unless it says that it takes more."""

_REFILL = 1 << 30
_LARGEST_FRAME = 1 << 20
_UNSENT = 1 << 20
"""Bytes that may wait for a peer who takes nothing; then nothing more is read from it either."""

_OURS = b"".join(
    SETTING.pack(*setting)
    for setting in (
        (MAX_CONCURRENT_STREAMS, STREAMS),
        (INITIAL_WINDOW_SIZE, WINDOW),
        (MAX_FRAME_SIZE, _LARGEST_FRAME),
        (MAX_HEADER_LIST_SIZE, LONGEST),
    )
)
_NO_HTTP2 = b"this port speaks gRPC, over HTTP/2 without an upgrade: use a gRPC client\n"


class Stream(Protocol):
    """One call, as its connection sees it.

    Attributes:
        window: bytes that the peer takes of it, beside what it takes of the whole connection.
        credit: bytes that the peer may still send.
    """

    window: int
    credit: int

    def receive(self, data: bytes, start: int, end: int, ended: bool, /) -> None:  # noqa: FBT001  # once a message
        """These bytes of `data` have arrived; whether they are the last."""
        ...

    def push(self) -> None:
        """There is room again for what waits to leave."""
        ...

    def lost(self) -> None:
        """The peer has given it up, or is gone."""
        ...


Open: TypeAlias = Callable[["Connection", int, Head], Stream | None]
"""Begins the call of a new stream; None if it is over already."""


class Connection(asyncio.Protocol):
    """A peer.

    Args:
        open_stream: begins a call.
        peers: it is among them as long as it is connected.

    Attributes:
        streams: what is open, by number.
        window: bytes that the peer takes, of whichever stream.
        may_write: whether the peer takes anything at present.
    """

    def __init__(self, open_stream: Open, peers: set[Connection]) -> None:
        self._open_stream = open_stream
        self._peers = peers
        self._heads = Heads()
        self._unread = b""
        self._begun = False
        self._data: tuple[int, int, bool] | None = None  # what of a frame is still to come: stream, bytes, its last
        self._block: list[bytes] | None = None  # headers that go on, for the stream ...
        self._block_of = (0, False)  # ... and whether it ends with them
        self._latest = 0
        self._consumed = 0
        self._first_window = DEFAULT_WINDOW
        self._largest_frame = 1 << 14
        self._waiting: dict[int, Stream] = {}
        self._scheduled = False
        self.may_write = True
        self._leaving = False
        self.streams: dict[int, Stream] = {}
        self.window = DEFAULT_WINDOW
        self._handlers = {
            HEADERS: self._headers,
            PRIORITY: _ignore,
            RESET: self._reset,
            SETTINGS: self._settings,
            PUSH_PROMISE: self._push,
            PING: self._ping,
            WINDOW_UPDATE: self._window_update,
            CONTINUATION: self._continuation,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_UNSENT)
        self._loop = asyncio.get_running_loop()
        self._peers.add(self)
        more = (MOST - DEFAULT_WINDOW).to_bytes(4, "big")
        self._transport.write(frame(SETTINGS, 0, 0, _OURS) + frame(WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, _: Exception | None) -> None:
        self._peers.discard(self)
        self.may_write = False
        streams = list(self.streams.values())
        self.streams.clear()
        self._waiting.clear()
        for stream in streams:
            stream.lost()

    def pause_writing(self) -> None:
        self.may_write = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.may_write = True
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._push_all()

    def data_received(self, data: bytes) -> None:
        try:
            if self._unread:
                data = self._unread + data
                self._unread = b""
            self._unread = data[self._take(data) :]
        except Violation as violation:
            self._refuse(violation)
        except HPACKError as error:
            self._refuse(Violation(COMPRESSION_ERROR, str(error)))
        except Exception:  # a fault of ours ends one connection, at most
            _log.exception("a connection fails")
            self._refuse(Violation(INTERNAL_ERROR, "internal error"))

    def _take(self, data: bytes) -> int:
        """Take frames; how many bytes have been."""
        size = len(data)
        at = 0
        if not self._begun:
            if not self._begins(data):
                return 0
            at = len(PREFACE)
        if self._data:
            at = self._more_data(data)
        while size - at >= 9:
            high, low, kind, flags, number = HEAD.unpack_from(data, at)
            number &= MOST
            length = high << 8 | low
            start = at + 9
            end = start + length
            if length > _LARGEST_FRAME:
                raise Violation(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if self._block is not None and kind != CONTINUATION:
                raise Violation(PROTOCOL_ERROR, "headers are interrupted")
            if kind == DATA and not flags & PADDED:
                if end <= size:
                    self._receive(number, data, start, end, length, flags & END_STREAM == END_STREAM)
                else:
                    self._receive(number, data, start, size, size - start, False)
                    self._data = number, end - size, flags & END_STREAM == END_STREAM
                    return size
            elif end > size:
                if length > LONGEST and kind != DATA:
                    raise Violation(ENHANCE_YOUR_CALM, f"a frame of {length} bytes that is no data")
                break
            elif kind == DATA:
                self._padded(number, flags, data, start, end)
            elif handler := self._handlers.get(kind):
                handler(flags, number, data[start:end])
            at = end
        return at

    def _begins(self, data: bytes) -> bool:
        if data.startswith(PREFACE):
            self._begun = True
            return True
        if not PREFACE.startswith(data[: len(PREFACE)]):
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n")
            self._transport.write(b"Content-Length: %d\r\n\r\n%b" % (len(_NO_HTTP2), _NO_HTTP2))
            self._transport.close()
        return False

    def _more_data(self, data: bytes) -> int:
        """Take what a frame has still to bring; how many bytes."""
        assert self._data  # noqa: S101
        number, left, last = self._data
        taken = min(left, len(data))
        self._data = (number, left - taken, last) if taken < left else None
        self._receive(number, data, 0, taken, taken, last and taken == left)
        return taken

    def _receive(self, number: int, data: bytes, start: int, end: int, counted: int, ended: bool) -> None:  # noqa: FBT001, PLR0913, PLR0917
        """Data of a stream that counts for so many bytes of the windows."""
        self._consumed += counted
        if self._consumed > _REFILL:
            self.grant(0, self._consumed)
            self._consumed = 0
        if stream := self.streams.get(number):
            stream.credit -= counted
            if stream.credit < 0:
                raise Violation(FLOW_CONTROL_ERROR, f"stream {number} sends more than it may")
            stream.receive(data, start, end, ended)
        elif number > self._latest or not number & 1:
            raise Violation(PROTOCOL_ERROR, f"data of stream {number}, which has not begun")

    def _padded(self, number: int, flags: int, data: bytes, start: int, end: int) -> None:
        first, last = unpadded(data, start, end)
        self._receive(number, data, first, last, end - start, flags & END_STREAM == END_STREAM)
        if number in self.streams:
            self.grant(number, end - start - (last - first))

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        start, end = unpadded(payload, 0, len(payload)) if flags & PADDED else (0, len(payload))
        if flags & PRIORITIZED:
            start += 5
        block = payload[start:end] if (start, end) != (0, len(payload)) else payload
        if flags & END_HEADERS:
            self._begin(number, block, ended=bool(flags & END_STREAM))
        else:
            self._block, self._block_of = [block], (number, bool(flags & END_STREAM))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or number != self._block_of[0]:
            raise Violation(PROTOCOL_ERROR, "headers go on that have not begun")
        self._block.append(payload)
        if sum(map(len, self._block)) > LONGEST or len(self._block) > 64:
            raise Violation(ENHANCE_YOUR_CALM, "headers without end")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._begin(number, block, ended=self._block_of[1])

    def _begin(self, number: int, block: bytes, *, ended: bool) -> None:
        head = self._heads.read(block)
        if stream := self.streams.get(number):  # trailers, of which gRPC has none from clients
            if ended:
                stream.receive(b"", 0, 0, True)  # noqa: FBT003
            return
        if number <= self._latest:
            return  # of a call that is over
        if not number & 1:
            raise Violation(PROTOCOL_ERROR, f"a stream of number {number}")
        self._latest = number
        if len(self.streams) >= STREAMS or self._leaving:
            self.reset(number, REFUSED_STREAM)
        elif head.refusal:
            self.send_headers(number, refusal(head.refusal), ended=True)
            self.reset(number, NO_ERROR)
        elif stream := self._open_stream(self, number, head):
            stream.window = self._first_window
            self.streams[number] = stream
            if ended:
                stream.receive(b"", 0, 0, True)  # noqa: FBT003

    def _reset(self, _: int, number: int, payload: bytes) -> None:
        number_in(payload)
        self._waiting.pop(number, None)
        if stream := self.streams.pop(number, None):
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
                for stream in self.streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
            elif key == MAX_FRAME_SIZE:
                if not 1 << 14 <= value < 1 << 24:
                    raise Violation(PROTOCOL_ERROR, f"frames of {value} bytes")
                self._largest_frame = min(value, _LARGEST_FRAME)
        self._transport.write(frame(SETTINGS, ACK, 0, b""))
        self._push_all()

    def _push(self, *_: object) -> None:
        raise Violation(PROTOCOL_ERROR, "a client that pushes")

    def _ping(self, flags: int, _: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Violation(FRAME_SIZE_ERROR, f"a ping of {len(payload)} bytes")
        if not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif self._leaving:
            self._say_goodbye(self._latest)

    def _window_update(self, _: int, number: int, payload: bytes) -> None:
        more = number_in(payload)
        if not more:
            raise Violation(PROTOCOL_ERROR, "a window that grows by nothing")
        if not number:
            self.window += more
            if self.window > MOST:
                raise Violation(FLOW_CONTROL_ERROR, "a window that grows without end")
            self._push_all()
        elif stream := self.streams.get(number):
            stream.window += more
            if stream.window > MOST:
                raise Violation(FLOW_CONTROL_ERROR, "a window that grows without end")
            if self._waiting.pop(number, None):
                stream.push()

    @property
    def unsent(self) -> bool:
        """Whether something waits to leave."""
        return self._transport.get_write_buffer_size() > 0

    def write(self, data: bytes) -> None:
        """Send frames, whatever the windows: whoever calls has seen to them."""
        self._transport.write(data)

    def send_headers(self, number: int, block: bytes, *, ended: bool) -> None:
        """Send a block of headers, or the last one."""
        self._transport.write(frame(HEADERS, END_HEADERS | ended, number, block))

    def room(self, stream: Stream) -> int:
        """Bytes of a stream that the peer takes now."""
        return max(0, min(stream.window, self.window)) if self.may_write else 0

    def send_data(self, stream: Stream, number: int, data: memoryview) -> int:
        """Send as much as there is room for; how much. For the rest the stream is told to push."""
        sent, size = 0, len(data)
        while sent < size:
            room = min(size - sent, self.room(stream), self._largest_frame)
            if not room:
                self.waits(stream, number)
                break
            self._transport.write(HEAD.pack(room >> 8, room & 255, DATA, 0, number))
            self._transport.write(data[sent : sent + room])
            stream.window -= room
            self.window -= room
            sent += room
        return sent

    def waits(self, stream: Stream, number: int) -> None:
        """Have the stream push when there is room again."""
        self._waiting[number] = stream

    def wants_to_push(self, stream: Stream, number: int) -> None:
        """Have the stream push, once everything that becomes ready at this moment is."""
        self.waits(stream, number)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._push_all)

    def _push_all(self) -> None:
        self._scheduled = False
        waiting, self._waiting = self._waiting, {}
        for stream in waiting.values():
            stream.push()

    def grant(self, number: int, size: int) -> None:
        """Let the peer send so many bytes more, of a stream or (0) of all."""
        if stream := self.streams.get(number):
            stream.credit += size
        self._transport.write(frame(WINDOW_UPDATE, 0, number, size.to_bytes(4, "big")))

    def close(self, number: int) -> None:
        """A stream is over."""
        self.streams.pop(number, None)
        self._waiting.pop(number, None)
        if self._leaving and not self.streams:
            self._transport.close()

    def reset(self, number: int, code: int) -> None:
        """Tell the peer that nothing more comes of a stream, or is wanted."""
        self._transport.write(frame(RESET, 0, number, code.to_bytes(4, "big")))

    def leave(self) -> None:
        """Open no further streams, and close when the last one is over.

        What the peer sends before it knows is refused in a way that tells it that nothing has been done.
        """
        if not self._leaving:
            self._leaving = True
            self._say_goodbye(MOST)
            self._transport.write(frame(PING, 0, 0, b"goodbye!"))

    def _say_goodbye(self, latest: int) -> None:
        self._transport.write(frame(GOAWAY, 0, 0, latest.to_bytes(4, "big") + NO_ERROR.to_bytes(4, "big")))
        if latest != MOST and not self.streams:
            self._transport.close()

    def end(self) -> None:
        """Close as soon as what has been sent has left."""
        self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def _refuse(self, violation: Violation) -> None:
        _log.info("a connection is closed: %s", violation)
        told = self._latest.to_bytes(4, "big") + violation.code.to_bytes(4, "big") + str(violation).encode()
        self._transport.write(frame(GOAWAY, 0, 0, told))
        self._transport.close()


def _ignore(*_: Any) -> None:
    pass
