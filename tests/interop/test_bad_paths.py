"""Requests whose path is not text: gRPC servers have stopped serving at one. Nobody is to notice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from support.calls import Gate, eventually
from support.concurrent import arrived, start, values
from support.models import RepositoryBuilder
from support.raw_http2 import (
    GOAWAY,
    HEADERS,
    PREFACE,
    RESET,
    SETTINGS,
    call_of,
    connect,
    first_answer,
    frame,
    headers_of,
    literal,
)
from support.server import Gateway, launch, serving
from support.streams import StreamCall

from tensorgate_client.wire import inference_pb2 as pb

pytestmark = pytest.mark.usefixtures("transport")

PATHS = b"/\xff\xfe/ModelInfer", b"/inference.GRPCInferenceService/\xc3("

STATUS = b"grpc-status", bytes.fromhex("9acac8b21234da8f")
"""The header's name as it is, and in the code of HPACK."""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up the model `slow`."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def models(repository: RepositoryBuilder, gate: Gate) -> Path:
    """A model that works until the gate opens."""
    repository.add("slow", gate.files, gate.config)
    return repository.root


@pytest.fixture
def gateway(models: Path) -> Iterator[Gateway]:
    """One that serves it."""
    with serving(models) as gateway:
        yield gateway


def send_bad_path(gateway: Gateway, path: bytes = PATHS[0]) -> tuple[int, bytes]:
    """Send such a request; the kind and payload of what answers it."""
    with connect(gateway) as connection:
        connection.sendall(call_of(path))
        return first_answer(connection)


@pytest.mark.parametrize("path", [b"/nobody/x", *PATHS])
def test_it_is_refused(gateway: Gateway, path: bytes) -> None:
    """Its sender gets an error, or is thrown off."""
    kind, payload = send_bad_path(gateway, path)
    assert kind in (RESET, GOAWAY) or (kind == HEADERS and any(name in payload for name in STATUS))


def test_what_has_begun_goes_on(gateway: Gateway, gate: Gate) -> None:
    """Requests under way and open streams get their answers, and so do new ones."""
    with StreamCall(gateway) as stream:
        stream.send("slow", 1)
        eventually(gate.begun)
        calls = [start(gateway, "slow", value) for value in (2, 3)]
        arrived(gateway)
        send_bad_path(gateway)
        gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
        calls.append(start(gateway, "slow", 4))
        gate.open()
        assert [values(call) for call in calls] == [[2], [3], [4]]
        assert stream.value() == [1]
        stream.send("slow", 5)
        stream.close()
        assert stream.value() == [5]
        assert stream.end() == (grpc.StatusCode.OK, "")


@contextmanager
def calling(gateway: Gateway) -> Iterator[Counter[str]]:
    """Calls one after the other; the statuses and details they end with, complete when the block is left."""
    ended: Counter[str] = Counter()
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            future = gateway.stub.ServerLive.future(pb.ServerLiveRequest(), timeout=60)
            ended[f"{future.code().name} {future.details()}"] += 1

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join(60)


def test_many_of_them(gateway: Gateway) -> None:
    """Fifty in a row: every other call of that moment is answered, and nothing is left open."""
    files = Path(f"/proc/{gateway.server.process.pid}/fd")
    send_bad_path(gateway)
    gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
    before = len(list(files.iterdir()))
    with calling(gateway) as ended:
        for _ in range(50):
            send_bad_path(gateway)
            gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
    assert set(ended) == {"OK "}
    assert gateway.server.process.poll() is None
    eventually(lambda: len(list(files.iterdir())) <= before + 2)


def test_the_port_stays_taken(gateway: Gateway, models: Path) -> None:
    """After one, as before, a second server on the same port does not start."""
    send_bad_path(gateway)
    gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
    with launch("--model-repository", models, "--port", gateway.address.rpartition(":")[2]) as second:
        assert second.wait() == 1
    assert "the port is taken" in second.log


def test_it_ends_as_ever(gateway: Gateway, gate: Gate) -> None:
    """After one, a server that is to end answers what it has, that from before it too, and its exit code is 0."""
    calls = [start(gateway, "slow", 1)]
    eventually(gate.begun)
    send_bad_path(gateway)
    gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
    calls.append(start(gateway, "slow", 2))
    arrived(gateway)
    gateway.server.signal(signal.SIGTERM)
    gateway.server.wait_for_log("stopping")
    gate.open()
    assert [values(call) for call in calls] == [[1], [2]]
    assert gateway.server.wait() == 0


def test_metadata_may_be_no_text_either(gateway: Gateway) -> None:
    """A call with a header that is not UTF-8 is answered as others are, and leaves no traceback in the log."""
    with connect(gateway) as connection:
        call = headers_of(b"/nobody/x", 1, ends=True, metadata=literal(b"traceparent", b"\xff\xfe"))
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + call)
        assert first_answer(connection)[0] == HEADERS
    assert "Traceback" not in gateway.server.log
