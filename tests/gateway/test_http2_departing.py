"""How connections over HTTP/2 of our own end with their server, byte by byte."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from support.calls import ECHO, Gate, eventually, request
from support.concurrent import counts, statistics
from support.models import RepositoryBuilder
from support.raw_http2 import (
    BEGINNING,
    DATA,
    GOAWAY,
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
)
from support.server import Gateway, serving


def test_calls_that_cross_the_farewell(repository: RepositoryBuilder, tmp_path: Path) -> None:
    """A server that stops serves what was sent before its farewell had arrived, and refuses what comes afterwards."""
    gate = Gate(tmp_path / "gate")
    repository.add("slow", gate.files, gate.config)
    repository.add("echo", config=ECHO)
    begun = request("slow", {"x": np.ones(1, np.float32)}).SerializeToString()
    framed = b"\0" + len(begun).to_bytes(4, "big") + begun
    with serving(repository.root, environment=NATIVE) as gateway, connect(gateway) as connection:
        peer = Peer(connection)
        peer.send(BEGINNING + headers_of(PATH, 1) + frame(DATA, LAST, 1, framed))
        eventually(gate.begun)
        gateway.server.signal()
        told = next(payload for kind, _, payload in peer.frames if kind == GOAWAY)
        assert told[:4] == b"\x7f\xff\xff\xff"  # any stream may still be on its way
        peer.send(call(3))
        assert peer.is_answered(3)
        peer.send(frame(PING, 1, 0, b"farewell"))
        told = next(payload for kind, _, payload in peer.frames if kind == GOAWAY)
        assert told == bytes(3) + b"\3" + bytes(4)
        peer.send(call(5))
        refused = next((stream, payload) for kind, stream, payload in peer.frames if kind == RESET)
        assert refused == (5, bytes(3) + b"\7")
        gate.open()
        assert peer.answer(1)[0]["grpc-status"] == "0"
        assert list(peer.frames) == []
        assert gateway.server.wait() == 0


def refused(gateway: Gateway) -> bool:
    """Whether the port takes no connection any more."""
    try:
        connect(gateway).close()
    except ConnectionError:
        return True
    return False


def test_an_answer_on_its_way_at_the_end(repository: RepositoryBuilder, tmp_path: Path) -> None:
    """A caller who is still reading a long answer, and sends something meanwhile, gets it all from an ending server."""
    gate = Gate(tmp_path / "gate")
    long = gate.MODEL.replace('{"y": inputs["x"]}', '{"y": np.resize(inputs["x"], 500_000)}')
    repository.add("slow", {"model.py": "import numpy as np\n" + long}, "max_batch_size: 0\n" + gate.config)
    asked = request("slow", {"x": np.ones(1, np.float32)}).SerializeToString()
    most = (2**31 - 1 - 65_535).to_bytes(4, "big")
    opening = PREFACE + frame(SETTINGS, 0, 0, b"\0\4" + most) + frame(WINDOW, 0, 0, most) + headers_of(PATH, 1)
    with serving(repository.root, environment=NATIVE) as gateway, connect(gateway) as connection:
        peer = Peer(connection)
        peer.send(opening + frame(DATA, LAST, 1, b"\0" + len(asked).to_bytes(4, "big") + asked))
        eventually(gate.begun)
        gate.open()
        eventually(lambda: counts(statistics(gateway, "slow")).get("success"))
        gateway.server.signal()
        eventually(lambda: refused(gateway))
        for _ in range(20):
            peer.send(frame(PING, 1, 0, b"farewell"))
            time.sleep(0.01)  # a server that closes too early has done so by then
        size = 0
        for kind, _, payload in peer.frames:
            if kind == HEADERS and "grpc-status" in dict(peer.decoder.decode(payload)):
                break
            size += len(payload) if kind == DATA else 0
            with suppress(ConnectionError):  # the rest may be here already, and the server gone
                peer.send(frame(PING, 1, 0, b"farewell"))
        peer.frames.close()
        assert size > 2_000_000
        assert gateway.server.wait(30) == 0
