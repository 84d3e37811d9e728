"""What no client of gRPC's would send, byte by byte, to a server over HTTP/2 of our own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from support.calls import ECHO, ONES, infer
from support.models import RepositoryBuilder
from support.raw_http2 import (
    BEGINNING,
    DATA,
    HEADERS,
    LAST,
    NATIVE,
    PATH,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW,
    Peer,
    call,
    connect,
    frame,
    headers_of,
    literal,
    message,
)
from support.server import Gateway, serving

from tensorgate_client.wire import inference_pb2 as pb

STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
CONTINUATION = 9
PADDED, PRIORITIZED = 8, 32
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR, CALM = 1, 3, 6, 9, 11


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves a model over the transport of our own."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("frames") / "models")
    builder.add("echo", config=ECHO)
    with serving(builder.root, environment=NATIVE) as gateway:
        yield gateway


@pytest.fixture
def peer(gateway: Gateway) -> Iterator[Peer]:
    """A bare connection; afterwards the server still answers others."""
    with connect(gateway) as connection:
        peer = Peer(connection)
        yield peer
        peer.frames.close()
    assert infer(gateway, "echo").shape == (1, 4)


def test_a_byte_at_a_time(peer: Peer) -> None:
    """A call is answered however the network cuts it."""
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in BEGINNING + call():
        peer.send(bytes([byte]))
    assert peer.is_answered()


def test_all_that_the_protocol_allows(peer: Peer) -> None:
    """Padding, priorities, headers and messages in several frames, and frames that nobody knows do no harm."""
    block = headers_of(PATH, 1)[9:]
    headers = frame(HEADERS, PADDED | PRIORITIZED, 1, b"\3" + b"\0\0\0\0\7" + block[:20] + bytes(3))
    rest = frame(CONTINUATION, 0, 1, block[20:50]) + frame(CONTINUATION, 4, 1, block[50:])
    data = message()
    first = frame(DATA, PADDED, 1, b"\5" + data[:3] + bytes(5)) + frame(0xBE, 0, 1, b"?") + frame(2, 0, 1, bytes(5))
    peer.send(BEGINNING + headers + rest + first + frame(DATA, 0, 1, data[3:40]) + frame(DATA, 0, 1, b""))
    peer.send(frame(DATA, 0, 1, data[40:]) + frame(HEADERS, 4 | LAST, 1, literal(b"trailing", b"x")))
    assert peer.is_answered()


@pytest.mark.parametrize("begins", [0, 3])
def test_a_message_cut_inside_its_prefix(peer: Peer, begins: int) -> None:
    """A long message arrives whole also if what is read first ends before or inside the bytes that tell its length."""
    data = message("x" * 8000)
    pieces = frame(DATA, 0, 1, data[:begins]) + frame(DATA, 0, 1, data[begins:-1]) + frame(DATA, LAST, 1, data[-1:])
    peer.send(BEGINNING + headers_of(PATH, 1) + pieces)
    assert peer.is_answered()


def test_data_behind_the_end(gateway: Gateway, peer: Peer) -> None:
    """What a stream brings after it has said that it ends begins no further call."""

    def answered() -> int:
        statistics = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="echo"), timeout=60)
        return statistics.model_stats[0].inference_count

    before = answered()
    peer.send(BEGINNING + headers_of(PATH, 1) + frame(DATA, LAST, 1, message()) * 9 + call(3))
    assert peer.is_answered()
    assert peer.is_answered(3)
    assert answered() - before == 2


def test_a_peer_without_a_header_table(peer: Peer) -> None:
    """A peer that keeps no table of headers is told once that none is used, as some insist on."""
    peer.decoder.max_allowed_table_size = 0  # raises an error unless the first block says so
    peer.send(PREFACE + frame(SETTINGS, 0, 0, b"\0\1" + bytes(4)) + call() + call(3))
    assert peer.is_answered()
    assert peer.is_answered(3)


def test_headers_that_refer_to_earlier_ones(peer: Peer) -> None:
    """Equal bytes of headers mean what they mean at that moment: the table they refer to may have changed since."""

    def indexed(name: bytes, value: bytes) -> bytes:
        return b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value

    common = b"".join(literal(*field) for field in ((b":method", b"POST"), (b"content-type", b"application/grpc")))
    unknown = b"/inference.GRPCInferenceService/Nothing"
    calls = [
        common + indexed(b":path", PATH),
        common + b"\xbe",  # the latest entry
        common + b"\xbe",
        common + indexed(b":path", unknown),
        common + b"\xbe",
        common + b"\xbf",  # the one before
    ]
    peer.send(BEGINNING)
    known = []
    for number, block in enumerate(calls):
        stream = 2 * number + 1
        peer.send(frame(HEADERS, 4, stream, block) + frame(DATA, LAST, stream, message()))
        known.append(peer.answer(stream)[0]["grpc-status"])
    assert known == ["0", "0", "0", "12", "12", "0"]


def test_a_reader_who_takes_little_at_a_time(peer: Peer) -> None:
    """An answer comes in as small pieces as its caller asks for, and calls beside it do not wait."""
    peer.send(PREFACE + frame(SETTINGS, 0, 0, b"\0\4" + (10).to_bytes(4, "big")) + call(1))
    pieces = []
    for kind, stream, payload in peer.frames:
        if kind == HEADERS and "grpc-status" in dict(peer.decoder.decode(payload)):
            break
        if (kind, stream) == (DATA, 1):
            pieces.append(payload)
            peer.send(frame(WINDOW, 0, 1, len(payload).to_bytes(4, "big")))
    assert max(map(len, pieces)) <= 10
    assert ONES.tobytes() in b"".join(pieces)


def test_a_call_with_too_much_metadata(peer: Peer) -> None:
    """A call whose metadata is too large is refused and told so; others on the connection go on."""
    large = b"".join(literal(b"x-%03d" % number, bytes(100)) for number in range(200))
    peer.send(BEGINNING + headers_of(PATH, 1, metadata=large) + frame(DATA, LAST, 1, message()) + call(3))
    headers, _ = peer.answer()
    assert headers["grpc-status"] == "8"
    assert "metadata larger than max" in headers["grpc-message"]
    assert peer.is_answered(3)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({b":method": b"GET", b"content-type": b"application/grpc"}, "405"),
        ({b":method": b"POST", b"content-type": b"application/json"}, "415"),
        ({b":method": b"POST"}, "415"),
    ],
)
def test_what_is_no_call(peer: Peer, fields: dict[bytes, bytes], status: str) -> None:
    """What is HTTP/2 but not gRPC is answered by HTTP's own status."""
    block = b"".join(literal(*field) for field in {**fields, b":path": PATH}.items())
    peer.send(BEGINNING + frame(HEADERS, 4 | LAST, 1, block) + call(3))
    assert peer.answer()[0][":status"] == status
    assert peer.is_answered(3)


def test_a_browser_is_told_what_this_is(peer: Peer) -> None:
    """Whoever opens the port with a browser or curl reads what it is for."""
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with peer.socket.makefile("rb") as received:
        told = received.read()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"use a gRPC client" in told


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(SETTINGS, 0, 0, b"12345"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, b"\0\4" + b"\xff" * 4), FLOW_CONTROL_ERROR),
        (frame(SETTINGS, 0, 0, b"\0\5" + bytes(4)), PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        (frame(RESET, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (headers_of(PATH, 2), PROTOCOL_ERROR),
        (frame(5, 4, 1, bytes(8)), PROTOCOL_ERROR),
        (frame(PING, 0, 0, b"short"), FRAME_SIZE_ERROR),
        (frame(WINDOW, 0, 0, bytes(4)), PROTOCOL_ERROR),
        (frame(WINDOW, 0, 0, b"\x7f" + b"\xff" * 3) * 2, FLOW_CONTROL_ERROR),
        (frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 100, CALM),
        (frame(CONTINUATION, 4, 1, b""), PROTOCOL_ERROR),
        (frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\x40\x01a\x7f\xa0\x1f" + b"x" * 4000 + b"\xbe" * 100), COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\x82" + b"\x40\x7f"), COMPRESSION_ERROR),
        (b"\xff\xff\xff" + frame(HEADERS, 4, 1, b"")[3:], FRAME_SIZE_ERROR),
        (b"\x02\0\0" + frame(HEADERS, 4, 1, b"")[3:], CALM),
        (headers_of(PATH, 1) + frame(DATA, PADDED, 1, b"\x09x"), PROTOCOL_ERROR),
    ],
)
def test_what_no_peer_may_send(peer: Peer, sent: bytes, code: int) -> None:
    """A peer that breaks the protocol is told how and disconnected, at once; nobody else notices."""
    with suppress(ConnectionError):
        peer.send(BEGINNING + sent)
    assert peer.fault() == code


def test_who_sends_more_than_asked_for(peer: Peer) -> None:
    """Whoever does not wait until a stream takes more is disconnected: what is not read yet stays bounded."""
    unread = b"\0" + (1 << 20).to_bytes(4, "big")
    peer.send(BEGINNING + headers_of(STREAM, 1) + frame(DATA, 0, 1, unread))
    with pytest.raises(ConnectionError):
        peer.send(frame(DATA, 0, 1, bytes(1 << 16)) * 1000)


def test_floods_of_frames(peer: Peer) -> None:
    """Calls given up as soon as begun, pings and settings by the ten thousands end, and the next call is answered."""
    settings = frame(SETTINGS, 0, 0, (b"\0\4" + (1 << 16).to_bytes(4, "big")) * 500)
    opened = b"".join(headers_of(PATH, number) + frame(RESET, 0, number, bytes(4)) for number in range(1, 20_001, 2))
    pings = frame(PING, 0, 0, bytes(8)) * 10_000
    peer.socket.settimeout(60)
    peer.send(BEGINNING + opened + settings * 20 + pings + call(20_001))
    assert peer.is_answered(20_001)


@pytest.mark.parametrize("broken", [b"", message()[:-1], message() + b"\0", message() * 2])
def test_not_one_message(peer: Peer, broken: bytes) -> None:
    """A unary call that brings no message, half a one or two is told so."""
    peer.send(BEGINNING + headers_of(PATH, 1) + frame(DATA, LAST, 1, broken) + call(3))
    headers, _ = peer.answer()
    assert headers["grpc-status"] in {"3", "13"}
    assert headers["grpc-message"]
    assert peer.is_answered(3)


def test_a_message_announced_too_large(peer: Peer) -> None:
    """A message that says that it is over the limit is refused before it comes, and takes no memory."""
    peer.send(BEGINNING + headers_of(PATH, 1) + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff") + call(3))
    headers, _ = peer.answer()
    assert headers["grpc-status"] == "8"
    assert "--max-message-mb" in headers["grpc-message"]
    assert peer.is_answered(3)
