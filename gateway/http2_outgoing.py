"""What leaves on an HTTP/2 connection, and how much of it may (RFC 9113, flow control)."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from typing import Protocol

from gateway.http2_frames import DATA, DEFAULT_WINDOW, END_HEADERS, HEAD, HEADERS, RESET, WINDOW_UPDATE, frame

_FEW, _MANY = 1 << 16, 1 << 20
"""Bytes that are copied into one piece, and that wait for others."""

_FIRST, _FURTHER = 4, 16
"""Frames that leave at once while more that has arrived is being answered: the first, and later ones."""

_SIOCOUTQNSD = 0x894B
"""Linux's number for: bytes that a socket has not sent yet."""


class Stream(Protocol):
    """One call, as its connection sees it.

    Attributes:
        window: bytes that the peer takes of it beyond what it takes of every stream; negative for what has been sent.
        credit: bytes that the peer may still send.
    """

    window: int
    credit: int

    def receive(self, data: bytes, start: int, end: int, last: int, /) -> None:
        """These bytes of `data` have arrived; other than 0 if they are the last."""
        ...

    def push(self) -> None:
        """There is room again for what waits to leave."""
        ...

    def lost(self) -> None:
        """The peer has given it up, or is gone."""
        ...


class Outgoing:
    """The way out.

    Attributes:
        streams: what is open, by number.
        window: bytes that the peer takes, of whichever stream.
        first_window: bytes that it takes of a stream at first.
        largest_frame: bytes of data that it takes in one.
        may_write: whether it takes anything at present.
        resized: goes before the next block of headers.
    """

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.window = self.first_window = DEFAULT_WINDOW
        self.largest_frame = 1 << 14
        self.may_write = True
        self.resized = b""
        self._waiting: dict[int, Stream] = {}
        self._pushing = False
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._flushing = False
        self._piece = _FIRST

    @property
    def unsent(self) -> bool:
        """Whether something waits to leave."""
        if self._out or self._transport.get_write_buffer_size():
            return True
        return not self._transport.is_closing() and _kept(self._transport.get_extra_info("socket").fileno()) > 0

    def write(self, data: bytes | memoryview) -> None:
        """Send frames, whatever the windows: whoever calls has seen to them.

        They leave together with whatever else is written at this moment: a system call for each would cost as much as
        all that is done for a small answer.
        """
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > _MANY:
            self.flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand over what has been written."""
        self._flushing = False
        self._piece = _FIRST
        self._hand_over()

    def flush_early(self) -> None:
        """Hand over a piece of it: its peer can go on with that while the rest of what it has sent is answered."""
        self._piece = min(2 * self._piece, _FURTHER)
        self._hand_over()

    def _hand_over(self) -> None:
        out, self._out, size = self._out, [], self._out_size
        self._out_size = 0
        if not out or self._transport.is_closing():
            return
        if size <= _FEW:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def send_headers(self, number: int, block: bytes, *, ended: bool) -> None:
        """Send a block of headers, or the last one."""
        self.write(frame(HEADERS, END_HEADERS | ended, number, self.resized + block))
        self.resized = b""

    def room(self, stream: Stream) -> int:
        """Bytes of a stream that the peer takes now."""
        return max(0, min(self.first_window + stream.window, self.window)) if self.may_write else 0

    def send_data(self, stream: Stream, number: int, data: memoryview) -> int:
        """Send as much as there is room for; how much. For the rest the stream is told to push."""
        sent, size = 0, len(data)
        while sent < size:
            room = min(size - sent, self.room(stream), self.largest_frame)
            if not room:
                self.waits(stream, number)
                break
            self.write(HEAD.pack(room >> 8, room & 255, DATA, 0, number))
            self.write(data[sent : sent + room])
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
        self.push()

    def push(self) -> None:
        """Have all push that wait, once everything that has arrived is taken: not for every byte of a window."""
        if self._waiting and not self._pushing:
            self._pushing = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        self._pushing = False
        waiting, self._waiting = self._waiting, {}
        for stream in waiting.values():
            stream.push()

    def grant(self, number: int, size: int) -> None:
        """Let the peer send so many bytes more, of a stream or (0) of all."""
        if stream := self.streams.get(number):
            stream.credit += size
        self.write(frame(WINDOW_UPDATE, 0, number, size.to_bytes(4, "big")))

    def reset(self, number: int, code: int) -> None:
        """Tell the peer that nothing more comes of a stream, or is wanted."""
        self.write(frame(RESET, 0, number, code.to_bytes(4, "big")))

    def drop(self) -> None:
        """Forget what waits: nobody takes it any more."""
        self.may_write = False
        self._out.clear()
        self._waiting.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.lost()


def _kept(socket: int) -> int:
    """Bytes that the system has taken and not sent. It drops them if a socket is closed while its peer still sends."""
    try:
        return int.from_bytes(fcntl.ioctl(socket, _SIOCOUTQNSD, bytes(4)), sys.byteorder)
    except OSError:  # a system that does not tell
        return 0
