"""Bytes that are no gRPC at all on the server's port."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import grpc
import pytest
from support.faults import GOOD, build
from support.server import Gateway, serving

NOT_ON_NEWER_GRPC = pytest.mark.skipif(
    [int(part) for part in grpc.__version__.split(".")[:2]] > [1, 78],
    reason="grpc.aio of a grpcio newer than the 1.78 of constraints.txt stops its whole server on such a request",
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RESET, GOAWAY = 4, 1, 3, 7

STATUS = b"grpc-status", bytes.fromhex("9acac8b21234da8f")
"""The header's name as it is, and in the code of HPACK."""

NOISE = {
    "nothing": b"",
    "zeros": bytes(10_000),
    "HTTP/1.1": b"POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "preface cut": PREFACE[:20],
    "preface then noise": PREFACE + bytes(range(256)) * 40,
}


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


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server for all of it."""
    with serving(build(tmp_path_factory.mktemp("models")).root) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def unharmed(gateway: Gateway) -> Iterator[None]:
    """Whatever a test sends, the same process answers the next good request."""
    yield
    assert gateway.stub.ModelInfer(GOOD, timeout=30).model_name == "classifier"
    assert gateway.server.process.poll() is None


def connect(gateway: Gateway) -> socket.socket:
    """A bare connection to the server's port."""
    host, port = gateway.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize(
    "path",
    [
        b"/nobody/x",
        pytest.param(b"/\xff\xfe/ModelInfer", marks=NOT_ON_NEWER_GRPC),
        pytest.param(b"/inference.GRPCInferenceService/\xc3(", marks=NOT_ON_NEWER_GRPC),
    ],
)
def test_a_path_that_is_not_text(gateway: Gateway, path: bytes) -> None:
    """A request whose path is not even UTF-8 is refused, and is its sender's trouble alone."""
    with connect(gateway) as connection:
        connection.sendall(call_of(path))
        kind, payload = first_answer(connection)
    assert kind in (RESET, GOAWAY) or (kind == HEADERS and any(name in payload for name in STATUS))


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_on_the_port_is_dropped(gateway: Gateway, noise: bytes) -> None:
    """A port scanner, a browser or a TLS client on the wrong port is turned away; others go on."""
    with connect(gateway) as connection:
        try:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except OSError as error:  # turned away at once, before all of it was said
            assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)  # noqa: PT017  # either way is right


def test_connections_may_come_and_go(gateway: Gateway) -> None:
    """Five hundred connections opened at once and dropped, some in the middle of a frame, change nothing."""
    connections = [connect(gateway) for _ in range(500)]
    for index, connection in enumerate(connections):
        connection.sendall((PREFACE + frame(SETTINGS, 0, 0, b""))[: index % 40])
    for connection in connections:
        connection.close()
