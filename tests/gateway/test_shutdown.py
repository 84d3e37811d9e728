"""How the server ends, and how callers leave."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.calls import ECHO, ONES, Gate, eventually, infer, load, refusal, request
from support.concurrent import arrived, counts, statistics
from support.raw_http2 import DATA, PREFACE, SETTINGS, WINDOW, connect, frame, headers_of
from support.server import Gateway, launch, serving

from tensorgate_client.wire import inference_pb2 as pb

pytestmark = pytest.mark.usefixtures("transport")

SIGNALS = [signal.SIGTERM, signal.SIGINT]
LONG_GRACE = ("--shutdown-grace-s", "600")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def gate(tmp_path) -> Gate:
    """Holds up the model `slow`."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def slow(repository, gate):
    """A repository with a model that works until the gate opens, and one that answers at once."""
    repository.add("slow", gate.files, gate.config)
    repository.add("quick", config=ECHO)
    return repository.root


def start(gateway: Gateway, value: float, **options: float) -> grpc.Future:
    """Begin a request to `slow`."""
    return gateway.stub.ModelInfer.future(request("slow", {"x": np.float32([value])}), **{"timeout": 60, **options})


def value_of(call: grpc.Future) -> float:
    """What `slow` answered."""
    return float(np.frombuffer(call.result(60).raw_output_contents[0], np.float32)[0])


def statuses(watching: Iterator[health_pb2.HealthCheckResponse]) -> queue.SimpleQueue[int]:
    """A health stream's statuses as they come; closed streams end it."""
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()

    def read() -> None:
        try:
            for response in watching:
                seen.put(response.status)
        except grpc.RpcError:
            seen.put(-1)

    threading.Thread(target=read, daemon=True).start()
    return seen


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_drains(slow, gate, number):
    """After the first signal health turns off, new requests go elsewhere, running ones are answered, the exit is 0."""
    with serving(slow, *LONG_GRACE) as gateway:
        watch = health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest())
        seen = statuses(watch)
        assert seen.get(timeout=60) == SERVING
        calls = [start(gateway, value) for value in (1, 2)]
        eventually(gate.begun)
        gateway.stub.ServerLive(pb.ServerLiveRequest())  # behind both requests on the same connection
        gateway.server.signal(number)
        assert seen.get(timeout=60) == NOT_SERVING
        eventually(lambda: refused_as_unavailable(gateway))
        assert not any(call.done() for call in calls)
        gate.open()
        assert [value_of(call) for call in calls] == [1, 2]
        assert gateway.server.wait() == 0
        assert gate.closed
        assert gateway.server.log.rstrip().endswith("stopped")


def refused_as_unavailable(gateway: Gateway) -> bool:
    """Whether a model that is not busy turns requests away."""
    call = gateway.stub.ModelInfer.future(request("quick", {"INPUT0": ONES}), timeout=10)
    # CANCELLED, or under load no answer: gRPC's core drops what reaches it while its farewell (GOAWAY) is on its way.
    dropped = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, *dropped}
    return call.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_ends_at_once(slow, gate, number):
    """A second signal ends the server whatever it is doing, with the code that shells expect of a signal."""
    with serving(slow, *LONG_GRACE) as gateway:
        call = start(gateway, 1)
        eventually(gate.begun)
        gateway.server.signal(number)
        gateway.server.wait_for_log("stopping")
        gateway.server.signal(number)
        assert gateway.server.wait(30) == 128 + number
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_a_large_answer_is_not_cut_off(repository, gate):
    """An answer of many megabytes that is ready while the server ends still reaches its caller, to the last byte."""
    large = gate.MODEL.replace('{"y": inputs["x"]}', '{"y": np.resize(inputs["x"], 3_000_000)}')
    repository.add("slow", {"model.py": "import numpy as np\n" + large}, "max_batch_size: 0\n" + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, value) for value in (1, 2, 3)]
        eventually(gate.begun)
        arrived(gateway)
        gateway.server.signal(signal.SIGTERM)
        gateway.server.wait_for_log("stopping")
        gate.open()
        for value, call in enumerate(calls, 1):
            (contents,) = call.result(60).raw_output_contents
            assert contents == np.full(3_000_000, value, np.float32).tobytes()
        assert gateway.server.wait(30) == 0


def test_a_peer_that_reads_nothing_does_not_hold_up_the_exit(repository, gate):
    """A large answer that its caller does not take is given up after the grace, and its connection with it."""
    large = gate.MODEL.replace('{"y": inputs["x"]}', '{"y": np.resize(inputs["x"], 10_000_000)}')
    repository.add("slow", {"model.py": "import numpy as np\n" + large}, "max_batch_size: 0\n" + gate.config)
    data = request("slow", {"x": np.ones(1, np.float32)}).SerializeToString()
    most = (2**31 - 1 - 65_535).to_bytes(4, "big")  # of bytes that may be sent without being asked for
    opening = PREFACE + frame(SETTINGS, 0, 0, b"\0\x04" + most) + frame(WINDOW, 0, 0, most)
    call = headers_of(b"/inference.GRPCInferenceService/ModelInfer", 1)
    message = frame(DATA, 1, 1, b"\0" + len(data).to_bytes(4, "big") + data)
    with serving(repository.root, "--shutdown-grace-s", "0.5") as gateway, connect(gateway) as connection:
        connection.sendall(opening + call + message)
        eventually(gate.begun)
        gate.open()
        eventually(lambda: counts(statistics(gateway, "slow")).get("success"))
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait(15) == 1
        assert "answers cut off that have not left after 0.5 s of grace" in gateway.server.log


def test_request_beyond_the_grace_is_cut(slow, gate):
    """A model stuck in a request cannot hold up the exit: the caller gets an error, the log a line, the exit is 1."""
    with serving(slow, "--shutdown-grace-s", "0.5") as gateway:
        call = start(gateway, 1)
        eventually(gate.begun)
        gateway.server.signal(signal.SIGTERM)
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert gateway.server.wait(30) == 1
        assert "requests cut off after 0.5 s of grace: 1" in gateway.server.log
        assert "Traceback" not in gateway.server.log


def test_model_stuck_for_nobody_does_not_hold_up_the_exit(slow, gate):
    """A model stuck on a request whose caller has left is given up after the grace, with a line that says so."""
    with serving(slow, "--shutdown-grace-s", "0.5") as gateway:
        call = start(gateway, 1)
        eventually(gate.begun)
        call.cancel()
        gateway.stub.ServerLive(pb.ServerLiveRequest())
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait(30) == 1
        assert "models still busy after 0.5 s of grace" in gateway.server.log


def test_no_grace_is_enough_when_nothing_runs(slow):
    """With a grace of 0 an idle server ends cleanly."""
    with serving(slow, "--shutdown-grace-s", "0") as gateway:
        infer(gateway, "quick")
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait(30) == 0, gateway.server.log


def test_open_streams_do_not_hold_up_the_exit(slow):
    """A health watcher and a reflection client that never hang up do not cost the whole grace."""
    with serving(slow, *LONG_GRACE) as gateway:
        seen = statuses(health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest()))
        asked, done = threading.Event(), threading.Event()

        def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            asked.set()
            done.wait(60)

        answers = reflection_pb2_grpc.ServerReflectionStub(gateway.channel).ServerReflectionInfo(questions())
        assert next(answers).list_services_response.service
        assert asked.wait(60)
        assert seen.get(timeout=60) == SERVING
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait(60) == 0
        assert [seen.get(timeout=60), seen.get(timeout=60)] == [NOT_SERVING, -1]
        done.set()


def test_calls_that_say_nothing_do_not_hold_up_the_exit(slow):
    """Callers who have begun calls and never send a message are told to go elsewhere, and cost no grace."""
    with serving(slow, *LONG_GRACE) as gateway, connect(gateway) as connection:
        begun = headers_of(b"/inference.GRPCInferenceService/ModelInfer", 1)
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + begun)
        infer(gateway, "quick")
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait(60) == 0


@pytest.mark.parametrize("stage", ["load", "execute"])
def test_signal_during_start_ends_promptly(repository, tmp_path, stage):
    """A server told to stop while a model still loads, or warms up, does not wait for it."""
    gate = Gate(tmp_path / "stuck", stage)
    data = 'inputs { key: "x" value { data_type: TYPE_FP32 zero_data: true } }'
    repository.add("stuck", gate.files, gate.config + f'model_warmup {{ name: "w" batch_size: 1 {data} }}')
    repository.add("quick", config=ECHO)
    with launch("--model-repository", repository.root, "--port", "0", *LONG_GRACE) as server:
        eventually(lambda: gate.begun(stage))
        server.signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert "ready: gRPC" not in server.log
        assert "Traceback" not in server.log


def test_signal_during_a_load_by_rpc_ends_promptly(repository, tmp_path):
    """A client that waits for a model to load when the server stops is told so, and the server does not wait."""
    gate = Gate(tmp_path / "stuck", "load")
    repository.add("slow", gate.files, gate.config)
    with serving(repository.root, "--model-control", "explicit", *LONG_GRACE) as gateway:
        answers: queue.SimpleQueue[tuple[grpc.StatusCode, str]] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(refusal(lambda: load(gateway, "slow"))), daemon=True).start()
        eventually(lambda: gate.begun("load"))
        gateway.server.signal(signal.SIGTERM)
        assert answers.get(timeout=60) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        assert gateway.server.wait(60) == 0


def test_cancelled_queued_request_never_executes(slow, gate):
    """A caller who leaves the queue costs nothing: its request is not executed, and those behind it are answered."""
    with serving(slow) as gateway:
        first = start(gateway, 1)
        eventually(gate.begun)
        cancelled, last = start(gateway, 2), start(gateway, 3)
        gateway.stub.ServerLive(pb.ServerLiveRequest())
        cancelled.cancel()
        for _ in range(5):  # the server hears of the cancellation before it hears these
            gateway.stub.ServerLive(pb.ServerLiveRequest())
        gate.open()
        assert [value_of(first), value_of(last)] == [1, 3]
        assert gate.begun() == ["1", "3"]


def test_cancelled_running_request_gives_its_instance_back(slow, gate):
    """A caller who leaves while its request executes leaves an instance that serves the next one."""
    with serving(slow) as gateway:
        call = start(gateway, 1)
        eventually(gate.begun)
        call.cancel()
        following = start(gateway, 2)
        gate.open()
        assert value_of(following) == 2


def test_deadline_passes_while_the_model_works(slow, gate):
    """A caller's deadline is answered when it passes, queued or executing, and the server goes on."""
    with serving(slow) as gateway:
        calls = [start(gateway, value, timeout=0.5) for value in (1, 2)]
        assert [call.code() for call in calls] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        assert infer(gateway, "quick").shape == (1, 4)
        gate.open()
        assert value_of(start(gateway, 3)) == 3
        assert "Traceback" not in gateway.server.log


def test_connections_grow_old(slow, gate):
    """With --max-connection-age-s a client's calls move to new connections, and none of them fails or is cut off."""
    with serving(slow, "--max-connection-age-s", "0.5") as gateway:
        call = start(gateway, 1)
        eventually(gate.begun)

        def peers() -> set[str]:
            found = [gateway.stub.ServerLive.with_call(pb.ServerLiveRequest(), timeout=60)[1].code() for _ in range(5)]
            assert set(found) == {grpc.StatusCode.OK}
            return connections(gateway)

        seen = peers()
        eventually(lambda: seen.update(peers()) or len(seen) > 2)
        gate.open()
        assert value_of(call) == 1


def connections(gateway: Gateway) -> set[str]:
    """The ports that this process has connected to the server from."""
    port = f":{int(gateway.address.rsplit(':', 1)[1]):04X}"
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/self/net", file).read_text().splitlines()]
    return {own for _, own, other, state, *_ in lines if other.endswith(port) and state == "01"}
