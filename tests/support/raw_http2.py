"""HTTP/2 by hand, for what no client would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator

from support.server import Gateway

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, GOAWAY, WINDOW = 0, 1, 3, 4, 7, 8


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header, spelled out."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers_of(path: bytes, stream: int, *, ends: bool = False, metadata: bytes = b"") -> bytes:
    """What begins a gRPC call to `path`; one that does not end is to be followed by a message."""
    fields = {b":method": b"POST", b":scheme": b"http", b":authority": b"x", b":path": path, b"te": b"trailers"}
    block = b"".join(literal(*field) for field in {**fields, b"content-type": b"application/grpc"}.items())
    return frame(HEADERS, 4 | ends, stream, block + metadata)


def call_of(path: bytes) -> bytes:
    """A connection's beginning, with a gRPC call to `path` that has no message."""
    return PREFACE + frame(SETTINGS, 0, 0, b"") + headers_of(path, 1, ends=True)


def frames(connection: socket.socket) -> Generator[tuple[int, int, bytes]]:
    """Kind, stream and payload of each frame that comes, until the connection is closed."""
    with connection.makefile("rb") as received:
        while head := received.read(9):
            yield head[3], int.from_bytes(head[5:], "big"), received.read(int.from_bytes(head[:3], "big"))


def first_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The kind and payload of the first frame that stream 1 gets, or of the one that closes the connection."""
    answers = ((kind, payload) for kind, stream, payload in frames(connection) if kind == GOAWAY or stream == 1)
    return next(answers, (0, b""))


def connect(gateway: Gateway) -> socket.socket:
    """A bare connection to the server's port."""
    host, port = gateway.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)
