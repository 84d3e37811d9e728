"""Bytes that are no gRPC at all on the server's port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from support.faults import GOOD, build
from support.raw_http2 import PREFACE, SETTINGS, connect, frame
from support.server import Gateway, serving

NOISE = {
    "nothing": b"",
    "zeros": bytes(10_000),
    "HTTP/1.1": b"POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "preface cut": PREFACE[:20],
    "preface then noise": PREFACE + bytes(range(256)) * 40,
}


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
