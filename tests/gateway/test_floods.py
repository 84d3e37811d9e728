"""More calls at once, and more open streams, than any well-meaning caller has."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import Gate, eventually, request
from support.models import RepositoryBuilder
from support.raw_http2 import PREFACE, RESET, SETTINGS, connect, frame, frames, headers_of
from support.server import Gateway, serving

from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc

pytestmark = pytest.mark.usefixtures("transport")

PATH = b"/inference.GRPCInferenceService/"
QUEUE, CONNECTIONS, STREAMS = 1024, 10, 512
"""Requests that wait for a model, by default; of a client; open ones of each."""
LIMITS = {"native": 1024, "grpcio": 8192}
"""Requests that a connection may have open."""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up the model `slow`."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def gateway(repository: RepositoryBuilder, gate: Gate) -> Iterator[Gateway]:
    """Serves a model that works on one request at a time, and on none until the gate opens."""
    repository.add("slow", gate.files, f"max_batch_size: 0\n{gate.config}")
    with serving(repository.root) as gateway:
        yield gateway


def test_a_burst_meets_the_queue_and_nothing_else(gateway: Gateway, gate: Gate) -> None:
    """Of 5,000 calls at the same moment each is answered, or told that the queue is full: none is dropped."""
    with ExitStack() as opened:
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
        channels = [opened.enter_context(grpc.insecure_channel(gateway.address, own)) for _ in range(CONNECTIONS)]
        stubs = [inference_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
        for stub in stubs:
            stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
        gateway.server.signal(signal.SIGSTOP)  # so that all are there before the first is looked at
        message = request("slow", {"x": np.ones(1, np.float32)})
        calls = [stub.ModelInfer.future(message, timeout=150) for stub in stubs for _ in range(5000 // CONNECTIONS)]
        gateway.server.signal(signal.SIGCONT)
        eventually(lambda: sum(call.done() for call in calls) >= len(calls) - QUEUE - 1)
        gate.open()
        codes = Counter(call.code() for call in calls)
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[grpc.StatusCode.OK] in (QUEUE, QUEUE + 1)  # and the one that was taken out of it


def stuck(gateway: Gateway, rpc: bytes, count: int) -> socket.socket:
    """A connection with calls that have begun and never send their message."""
    connection = connect(gateway)
    begun = (headers_of(PATH + rpc, 2 * number + 1) for number in range(count))
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(begun))
    return connection


def test_a_connection_has_only_so_many_streams(gateway: Gateway, transport: str) -> None:
    """Whoever opens more calls than they are allowed to on a connection has those refused, and no others."""
    limit = LIMITS[transport]
    with stuck(gateway, b"ModelInfer", limit + 88) as connection:
        refused = set()
        for kind, stream, _ in frames(connection):
            if kind == RESET:
                refused.add(stream)
            if len(refused) == 88:
                break
    assert refused == {2 * number + 1 for number in range(limit, limit + 88)}


@pytest.mark.parametrize("rpc", [b"ModelInfer", b"ModelStreamInfer"])
def test_calls_that_say_nothing_cost_little(gateway: Gateway, rpc: bytes) -> None:
    """Five thousand calls that never send their message cost the server less than 64 KB each, also the second time."""

    def resident_kb() -> float:
        return int(Path(f"/proc/{gateway.server.process.pid}/statm").read_text().split()[1]) * 4

    def open_and_leave() -> None:
        with ExitStack() as opened:
            for _ in range(CONNECTIONS):
                opened.enter_context(stuck(gateway, rpc, STREAMS))
            for _ in range(20):  # others are served meanwhile
                gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)

    before = resident_kb()
    for _ in range(3):
        open_and_leave()
    assert resident_kb() - before < 64 * STREAMS * CONNECTIONS
