"""As much HTTP/2 as gRPC calls take, written to cost far less than the server it measures.

grpc.aio's own client takes about as much processor time a call as the gateway does (150 us and more): on two cores it
would be the client that is measured. This one takes a third of that, most of it the kernel's.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
from dataclasses import dataclass

from benchmarks.hpack import encode, grpc_status
from benchmarks.report import BenchmarkError

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_TABLE_SIZE, _PUSH, _INITIAL_WINDOW, _FRAME_SIZE = 1, 2, 4, 5  # settings
_CANCEL = 8
_DEFAULT_WINDOW = 65_535
_LARGEST_WINDOW = 2**31 - 1
_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_SILENCE_S = 60
NO_STATUS = -1


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


@dataclass(slots=True)
class _Unsent:
    """The part of a body that waits for the server to open its windows."""

    rest: memoryview
    window: int


class Connection:
    """A connection for unary calls of one method, all with the same deadline; answers' contents are dropped."""

    def __init__(self, address: str, path: str, deadline_ms: int | None = None) -> None:
        headers = {b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": address.encode()}
        headers |= {b"content-type": b"application/grpc", b"te": b"trailers"}
        if deadline_ms is not None:
            headers[b"grpc-timeout"] = b"%dm" % deadline_ms
        self._headers = encode(headers)
        self._ids = itertools.count(1, 2)
        self._unsent: dict[int, _Unsent] = {}
        self._window = self._initial_window = _DEFAULT_WINDOW
        self._frame_size = 16_384
        self._incomplete = b""
        self._outgoing: list[bytes] = []
        self._unacknowledged = 0
        self._greeted = False
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=_SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._greet()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _greet(self) -> None:
        wanted = ((_TABLE_SIZE, 0), (_PUSH, 0), (_INITIAL_WINDOW, _LARGEST_WINDOW))
        settings = _frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in wanted))
        self._outgoing.append(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        self._widen(_LARGEST_WINDOW - _DEFAULT_WINDOW)
        while not self._greeted:
            self.receive()

    def _widen(self, size: int) -> None:
        self._outgoing.append(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", size)))

    def send(self, body: bytes) -> int:
        """Start a call with `body`, a framed gRPC message; its stream. It leaves with the next `receive`."""
        stream = next(self._ids)
        head = _frame(_HEADERS, _END_HEADERS, stream, self._headers)
        if len(body) <= min(self._window, self._initial_window, self._frame_size) and not self._unsent:
            self._window -= len(body)
            self._outgoing.append(head + _frame(_DATA, _END_STREAM, stream, body))
        else:
            self._unsent[stream] = _Unsent(memoryview(body), self._initial_window)
            self._outgoing.append(head)
            self._flush()
        return stream

    def cancel(self, stream: int) -> None:
        """End a call as a gRPC client does whose deadline has passed; an answer may be under way still."""
        self._unsent.pop(stream, None)
        self._outgoing.append(_frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))

    def receive(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Streams that ended with their status, after waiting at most so many seconds for something to come.

        Raises:
            BenchmarkError: the server has closed the connection, or is silent for long.
        """
        if self._outgoing:  # at once: a call of the system costs more than all else here
            self._socket.sendall(b"".join(self._outgoing))
            self._outgoing.clear()
        if timeout is not None and not select.select([self._socket], [], [], max(timeout, 0))[0]:
            return []
        try:
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            raise BenchmarkError(f"no answer for {_SILENCE_S} s: see whether the server still runs") from None
        if not data:
            raise BenchmarkError("the server closed the connection: start it alone and read its log")
        return self._parse(self._incomplete + data)

    def _parse(self, buffer: bytes) -> list[tuple[int, int]]:
        at, ended = 0, []
        while at + _HEAD.size <= len(buffer):
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
            start = at + _HEAD.size
            end = start + (high << 8) + low
            if end > len(buffer):
                break
            at = end
            if kind == _DATA:
                self._count(end - start)
            else:
                self._control(kind, flags, stream, buffer[start:end])
            status = self._status(kind, flags, buffer, start, end)
            if status is not None:
                ended.append((stream, status))
                if stream in self._unsent:
                    self.cancel(stream)
        self._incomplete = buffer[at:]
        return ended

    def _status(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> int | None:
        """The status of the call that this frame ends, if it ends one."""
        if kind == _HEADERS and flags & _END_STREAM:
            status = grpc_status(buffer[start:end])
            return NO_STATUS if status is None else status
        return NO_STATUS if kind == _RST_STREAM or (kind == _DATA and flags & _END_STREAM) else None

    def _count(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged > _LARGEST_WINDOW // 2:
            self._widen(self._unacknowledged)
            self._unacknowledged = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._settle(payload)
        elif kind == _PING and not flags & _ACK:
            self._outgoing.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            size = struct.unpack(">I", payload)[0]
            if not stream:
                self._window += size
            elif stream in self._unsent:
                self._unsent[stream].window += size
            self._flush()
        elif kind == _GOAWAY:
            raise BenchmarkError(f"the server sends the connection away: {payload[8:].decode(errors='replace')}")

    def _settle(self, payload: bytes) -> None:
        settings = dict(_SETTING.iter_unpack(payload))
        window = settings.get(_INITIAL_WINDOW, self._initial_window)
        for unsent in self._unsent.values():
            unsent.window += window - self._initial_window
        self._initial_window = window
        self._frame_size = settings.get(_FRAME_SIZE, self._frame_size)
        self._outgoing.append(_frame(_SETTINGS, _ACK, 0))
        self._greeted = True
        self._flush()

    def _flush(self) -> None:
        """Send what the windows let through, the oldest call first."""
        for stream, unsent in list(self._unsent.items()):
            frames = []
            while unsent.rest and (size := min(len(unsent.rest), self._window, unsent.window, self._frame_size)) > 0:
                part, unsent.rest = unsent.rest[:size], unsent.rest[size:]
                self._window -= size
                unsent.window -= size
                frames.append(_frame(_DATA, 0 if unsent.rest else _END_STREAM, stream, part))
            if frames:
                self._outgoing.append(b"".join(frames))
            if not unsent.rest:
                del self._unsent[stream]
            if self._window <= 0:
                break
