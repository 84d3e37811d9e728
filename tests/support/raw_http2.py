"""HTTP/2 by hand, for what no client would send."""

from __future__ import annotations

import socket
import struct

from support.server import Gateway

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RESET, GOAWAY = 4, 1, 3, 7


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header, spelled out."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_of(path: bytes) -> bytes:
    """The beginning of a gRPC call to `path`."""
    fields = {b":method": b"POST", b":scheme": b"http", b":authority": b"x", b":path": path, b"te": b"trailers"}
    block = b"".join(literal(*field) for field in {**fields, b"content-type": b"application/grpc"}.items())
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 4 | 1, 1, block)


def first_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The kind and payload of the first frame that stream 1 gets, or of the one that closes the connection."""
    received = connection.makefile("rb")
    while head := received.read(9):
        payload = received.read(int.from_bytes(head[:3], "big"))
        if head[3] == GOAWAY or int.from_bytes(head[5:], "big") == 1:
            return head[3], payload
    return 0, b""


def connect(gateway: Gateway) -> socket.socket:
    """A bare connection to the server's port."""
    host, port = gateway.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)
