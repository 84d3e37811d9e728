"""HTTP/2 by hand, for what no client would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator

from hpack import Decoder

from support.calls import ONES, request
from support.server import Gateway

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
LAST = 1
PATH = b"/inference.GRPCInferenceService/ModelInfer"
NATIVE = {"TENSORGATE_TRANSPORT": "native"}
"""What has a server speak HTTP/2 of our own."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


BEGINNING = PREFACE + frame(SETTINGS, 0, 0, b"")
"""Of a connection."""


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


def message(request_id: str = "") -> bytes:
    """A framed request to `echo`."""
    asked = request("echo", {"INPUT0": ONES})
    asked.id = request_id
    data = asked.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def call(stream: int = 1) -> bytes:
    """A call, whole."""
    return headers_of(PATH, stream) + frame(DATA, LAST, stream, message())


class Peer:
    """A bare connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.frames = frames(connection)
        self.decoder = Decoder()

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.socket.sendall(data)

    def answer(self, stream: int = 1) -> tuple[dict[str, str], bytes]:
        """Headers and data of a stream's answer, to its end."""
        headers: dict[str, str] = {}
        data = b""
        for kind, number, payload in self.frames:
            assert kind != GOAWAY, payload
            fields = dict(self.decoder.decode(payload)) if kind == HEADERS else {}
            if number == stream:
                headers |= fields
                data += payload if kind == DATA else b""
                if "grpc-status" in headers or headers.get(":status", "200") != "200":
                    break
        return headers, data

    def is_answered(self, stream: int = 1) -> bool:
        """Whether a call to `echo` gets its response."""
        headers, data = self.answer(stream)
        assert int.from_bytes(data[1:5], "big") == len(data) - 5
        return headers["grpc-status"] == "0" and ONES.tobytes() in data

    def fault(self) -> int:
        """The code that the server closes the connection with."""
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, payload in self.frames if kind == GOAWAY]
        return codes[-1]
