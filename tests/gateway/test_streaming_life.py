"""How much a ModelStreamInfer stream holds, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.calls import Gate, eventually
from support.concurrent import arrived, counts, in_turn, start, statistics, values
from support.server import Gateway, serving
from support.streams import DOUBLE, StreamCall, failure, value

Code = grpc.StatusCode
pytestmark = pytest.mark.usefixtures("transport")
ALONE = "max_batch_size: 1\n"
LONG_GRACE = ("--shutdown-grace-s", "600")
SHUTTING_DOWN = (Code.UNAVAILABLE, "the server is shutting down: try another one")


@pytest.fixture
def gate(tmp_path) -> Gate:
    """Holds up the model `slow`."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def models(repository, gate):
    """`slow` gives rows back one by one once the gate is open; `quick` and `long` double theirs at once."""
    repository.add("slow", gate.files, ALONE + gate.config)
    repository.add("quick", {"model.py": DOUBLE})
    repository.add("long", {"model.py": DOUBLE.replace("(-1,)", "(-1, -1)")})
    return repository.root


def successes(gateway: Gateway, model: str) -> int:
    """How many requests a model has answered."""
    return counts(statistics(gateway, model)).get("success", 0)


def resident_mb(gateway: Gateway) -> float:
    """What the server holds in memory."""
    pages = int(Path(f"/proc/{gateway.server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_a_full_window_is_not_read(models, gate):
    """With as many requests under way as the window takes, the next stays with its sender until one is answered."""
    with serving(models, "--stream-window", "3") as gateway, StreamCall(gateway) as stream:
        for number in (1, 2, 3):
            stream.send("slow", number)
        for _ in range(5):
            stream.send("quick", 1, unordered=True)
        eventually(gate.begun)
        arrived(gateway)
        assert successes(gateway, "quick") == 0
        gate.open()
        stream.close()
        assert len(stream.rest()) == 8
        assert successes(gateway, "quick") == 5


def test_a_slow_reader_costs_little_memory(models):
    """A client that sends on without reading its answers is slowed down; the server keeps a windowful, no more."""
    size, messages, window = 250_000, 200, 4  # 1 MB each
    with serving(models, "--stream-window", str(window)) as gateway, StreamCall(gateway) as stream:
        before = resident_mb(gateway)
        for number in range(messages):
            stream.send("long", np.full(size, number))
        stream.close()
        eventually(lambda: successes(gateway, "long") >= window)
        arrived(gateway)
        assert successes(gateway, "long") <= 4 * window  # the connections' own buffers hold some, too
        assert resident_mb(gateway) - before < 100
        assert [value(response)[0][0] for response in stream.rest()] == [2 * number for number in range(messages)]


def test_a_caller_who_leaves_with_responses_waiting_is_no_error(models):
    """Cancelling a stream whose responses nobody has read ends it, and is nothing that the log warns of."""
    with serving(models) as gateway:
        with StreamCall(gateway) as stream:
            for number in range(200):
                stream.send("long", np.full(250_000, number))
            eventually(lambda: successes(gateway, "long") >= 60)
        arrived(gateway)
        gateway.server.signal()
        assert gateway.server.wait() == 0
        assert "Error" not in gateway.server.log


def test_large_messages_fill_the_window_early(models, gate):
    """However long the window, no more is read while requests of --max-message-mb together are under way."""
    with serving(models, "--max-message-mb", "4") as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        eventually(gate.begun)
        for number in range(20):
            stream.send("long", np.full(250_000, number))
        eventually(lambda: successes(gateway, "long") >= 4)
        arrived(gateway)
        assert successes(gateway, "long") <= 5
        gate.open()
        stream.close()
        assert [value(response)[0] for response in stream.rest()[:2]] == [1, [0] * 250_000]


def test_the_queues_limit_is_not_for_streams(repository, gate):
    """A stream faster than its model is slowed down, not refused; and it takes no place in the queue from others."""
    limit = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n"
    repository.add("slow", gate.files, ALONE + limit + gate.config)
    repository.add("quick", {"model.py": DOUBLE})
    with serving(repository.root) as gateway, StreamCall(gateway) as stream:
        for number in range(30):
            stream.send("slow", number)
        stream.send("quick", 1, unordered=True)
        assert stream.value() == [2]
        calls = in_turn(gateway, "slow", [100], [101])
        assert start(gateway, "slow", 102).code() is Code.RESOURCE_EXHAUSTED
        gate.open()
        stream.close()
        assert [value(response) for response in stream.rest()] == [[number] for number in range(30)]
        assert [values(call) for call in calls] == [[100], [101]]


def test_a_streams_deadline_is_its_requests(models, gate):
    """When the time that a stream was given is over, it ends, and what still waited is never executed."""
    with serving(models) as gateway, StreamCall(gateway, timeout=1) as stream:
        for number in range(5):
            stream.send("slow", number)
        assert stream.end()[0] is Code.DEADLINE_EXCEEDED
        eventually(lambda: counts(statistics(gateway, "slow")).get("fail") == 5)
        gate.open()
        assert values(start(gateway, "slow", 7)) == [7]
        assert gate.begun() == ["0", "7"]


def test_what_cannot_be_in_time_is_told(models, gate):
    """A request that its stream's deadline leaves no time for is refused by a message, and the stream goes on."""
    gate.open()
    with serving(models) as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        stream.send("slow", 2, timeout_us=1, id="hasty")
        stream.send("slow", 3)
        stream.close()
        first, second, third = stream.rest()
        assert [value(first), value(third)] == [[1], [3]]
        assert second.infer_response.id == "hasty"
        if second.error_message:  # it may have found the model idle
            assert failure(second)[1] == "DEADLINE_EXCEEDED"


def test_a_cancelled_stream_leaves_nothing_behind(models, gate):
    """A client that leaves midway costs nothing more: what waited never runs, and the server can end at once."""
    with serving(models, *LONG_GRACE) as gateway:
        with StreamCall(gateway) as stream, StreamCall(gateway) as other:
            for number in range(50):
                stream.send("slow", number)
            eventually(gate.begun)
            stream.send("quick", 1, unordered=True)
            assert stream.value() == [2]
            other.send("slow", 100)
            other.send("quick", 1, unordered=True)
            assert other.value() == [2]
            stream.call.cancel()
            eventually(lambda: counts(statistics(gateway, "slow")).get("fail") == 50)
            gate.open()
            assert other.value() == [100]
        assert gate.begun() == ["0", "100"]
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait() == 0
        assert "Traceback" not in gateway.server.log


def test_a_connection_that_breaks_is_no_more_than_a_cancellation(models, gate):
    """A client whose connection breaks midway leaves nothing pending, and no complaint in the server's log."""
    with serving(models, *LONG_GRACE) as gateway:
        with grpc.insecure_channel(gateway.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            own = Gateway(gateway.server, gateway.address, channel)
            stream = StreamCall(own)
            for number in range(50):
                stream.send("slow", number)
            stream.send("quick", 1, unordered=True)
            assert stream.value() == [2]
        stream.close()
        eventually(lambda: counts(statistics(gateway, "slow")).get("fail") == 50)
        gate.open()
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait() == 0
        assert "Traceback" not in gateway.server.log


def test_errors_as_status_drop_the_rest(models, gate):
    """A stream that ends with a failure's status takes with it what it still had under way."""
    with serving(models) as gateway, StreamCall(gateway, triton_grpc_error="true") as stream:
        for number in range(5):
            stream.send("slow", number)
        eventually(gate.begun)
        stream.send("nobody", 1, unordered=True)
        assert stream.end()[0] is Code.NOT_FOUND
        eventually(lambda: counts(statistics(gateway, "slow")).get("fail") == 5)
        gate.open()
        assert values(start(gateway, "slow", 7)) == [7]
        assert gate.begun() == ["0", "7"]


def test_draining_answers_what_was_read(models, gate):
    """On SIGTERM a stream gets the answers to what the server had read, then UNAVAILABLE; the server exits with 0."""
    with serving(models, *LONG_GRACE) as gateway, StreamCall(gateway) as stream:
        for number in range(5):
            stream.send("slow", number)
        stream.send("quick", 1, unordered=True)
        assert stream.value() == [2]
        watch = health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gateway.server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.send("quick", 2, unordered=True)
        gate.open()
        assert [stream.value() for _ in range(5)] == [[number] for number in range(5)]
        assert stream.end() == SHUTTING_DOWN
        assert gateway.server.wait() == 0
        assert "Traceback" not in gateway.server.log


def test_idle_streams_do_not_hold_up_the_exit(models):
    """Open streams with nothing under way end with UNAVAILABLE when the server is told to stop, and it stops."""
    with serving(models, *LONG_GRACE) as gateway, StreamCall(gateway) as used, StreamCall(gateway) as fresh:
        used.send("quick", 1)
        assert used.value() == [2]
        fresh.send("nobody", 1)
        assert failure(fresh.next())[1] == "NOT_FOUND"
        gateway.server.signal(signal.SIGTERM)
        # Without the text where, under load, the front closes the connection before it has passed that on.
        assert [code for code, _ in (used.end(), fresh.end())] == [grpc.StatusCode.UNAVAILABLE] * 2
        assert gateway.server.wait(60) == 0


def test_a_stuck_stream_is_cut_after_the_grace(models, gate):
    """A model stuck in a stream's request holds up the exit for the grace and no longer; the log says so."""
    with serving(models, "--shutdown-grace-s", "0.5") as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        eventually(gate.begun)
        gateway.server.signal(signal.SIGTERM)
        assert stream.end()[0] in {Code.UNAVAILABLE, Code.CANCELLED}
        assert gateway.server.wait(30) == 1
        assert "requests cut off after 0.5 s of grace: 1" in gateway.server.log
        assert "Traceback" not in gateway.server.log
