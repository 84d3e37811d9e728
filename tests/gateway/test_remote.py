"""Models on other servers, as their callers see them: what is passed on, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import eventually, first_output, index, refusal, request
from support.concurrent import arrived, start, values
from support.fake_inference import FakeInference, serving_fake
from support.metrics import scrape
from support.models import RepositoryBuilder
from support.otlp import Collector, collecting
from support.remote import remote
from support.server import Gateway, free_port, serving

from tensorgate_client.wire import inference_pb2 as pb

PAIR = np.ones((1, 2), np.float32)
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONE_AT_A_TIME = "instance_group { count: 1 }\n"
TWO_TOGETHER = "dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 60000000 }\n"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Takes what the gateway exports."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def late() -> int:
    """A port on which nobody listens yet."""
    return free_port()


@pytest.fixture(scope="module")
def served(
    collector: Collector, late: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, FakeInference]]:
    """A gateway in front of a server that does as it is told."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    fake = FakeInference()
    with serving_fake(fake) as address:
        repository.add("double", {}, remote(address))
        repository.add("once", {}, remote(address, idempotent="false"))
        repository.add("short", {}, remote(address, timeout_s="0.2"))
        repository.add("pair", {}, remote(address) + ONE_AT_A_TIME + TWO_TOGETHER)
        repository.add("pair_once", {}, remote(address, idempotent="false") + ONE_AT_A_TIME + TWO_TOGETHER)
        repository.add("cached", {}, remote(address) + "response_cache { enable: true }\n")
        repository.add("late", {}, remote(f"127.0.0.1:{late}"))
        environment = collector.environment(TENSORGATE_TRACE_RATE="0")
        with serving(repository.root, environment=environment) as gateway:
            yield gateway, fake


@pytest.fixture
def near(served: tuple[Gateway, FakeInference]) -> Gateway:
    """The gateway."""
    return served[0]


@pytest.fixture
def fake(served: tuple[Gateway, FakeInference]) -> Iterator[FakeInference]:
    """The server behind it, as new."""
    fake = served[1]
    fake.asked.clear()
    fake.begun.clear()
    fake.ended.clear()
    yield fake
    fake.failures.clear()
    fake.held.set()


def double(gateway: Gateway, model: str = "double", timeout: float | None = 60, **options: Any) -> list[Any]:
    """A call's answer."""
    return first_output(gateway.stub.ModelInfer(request(model, {"x": PAIR}), timeout=timeout, **options)).tolist()


def outcome(gateway: Gateway, model: str = "double") -> Any:
    """A call's answer, or what it is refused with."""
    try:
        return double(gateway, model)
    except grpc.RpcError as error:
        return error.code(), error.details()


def sent(fake: FakeInference) -> int:
    """How many batches the server was sent."""
    return fake.asked.count("ModelInfer")


def test_deadlines_are_passed_on(near: Gateway, fake: FakeInference) -> None:
    """A server learns how long the caller still waits; without a caller's deadline, how long the gateway does."""
    double(near, timeout=20)
    assert 0 < fake.left < 21  # gRPC sends it rounded up
    double(near, timeout=None)
    assert 21 < fake.left < 61


def test_the_longest_deadline_of_a_batch_counts(near: Gateway, fake: FakeInference) -> None:
    """A batch is not given up as long as one of its callers waits."""
    first = start(near, "pair", [1, 1], timeout=5)
    arrived(near)
    second = start(near, "pair", [2, 2], timeout=50)
    assert values(first) + values(second) == [[2, 2], [4, 4]]
    assert sent(fake) == 1
    assert 6 < fake.left < 51  # gRPC sends it rounded up


def test_a_caller_whose_time_is_up(near: Gateway, fake: FakeInference) -> None:
    """A server that does not answer in time holds neither its caller nor anything else up: the call to it ends."""
    fake.held.clear()
    assert refusal(lambda: double(near, timeout=0.3))[0] is Code.DEADLINE_EXCEEDED
    assert fake.ended.wait(60)
    code, text = refusal(lambda: double(near, "short"))
    assert code is Code.DEADLINE_EXCEEDED
    assert text == "model 'short': not answered in time by the server that it runs on"


def test_cancelling_reaches_the_server(near: Gateway, fake: FakeInference) -> None:
    """What nobody waits for any more is cancelled at the server; as long as one of a batch's callers is there, not."""
    fake.held.clear()
    calls = [start(near, "pair", [1, 1]), start(near, "pair", [2, 2])]
    assert fake.begun.wait(60)
    calls[0].cancel()
    arrived(near)
    assert not fake.ended.is_set()
    calls[1].cancel()
    assert fake.ended.wait(60)
    fake.held.set()
    calls = [start(near, "pair", [1, 1]), start(near, "pair", [2, 2])]  # the only instance is free again
    assert [values(call) for call in calls] == [[[2, 2]], [[4, 4]]]


def test_an_equal_request_outlives_the_first(near: Gateway, fake: FakeInference) -> None:
    """Whoever joins an equal request is answered, also when the first one's caller cannot wait so long."""
    fake.held.clear()
    first = start(near, "cached", [3, 3], timeout=0.5)
    assert fake.begun.wait(60)
    second = start(near, "cached", [3, 3], timeout=50)
    assert refusal(first.result)[0] is Code.DEADLINE_EXCEEDED
    eventually(lambda: sent(fake) == 2)  # its deadline was the first one's
    fake.held.set()
    assert values(second) == [[6, 6]]


def test_an_abandoned_request_is_not_joined(near: Gateway, fake: FakeInference) -> None:
    """A request that comes when an equal one has just been given up is computed anew."""
    fake.held.clear()
    first = start(near, "cached", [4, 4])
    assert fake.begun.wait(60)
    first.cancel()
    second = start(near, "cached", [4, 4])
    fake.held.set()
    assert values(second) == [[8, 8]]


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, "model 'double': as told"),
        (
            Code.RESOURCE_EXHAUSTED,
            Code.RESOURCE_EXHAUSTED,
            "model 'double': the server that it runs on has too much to do",
        ),
        (
            Code.DEADLINE_EXCEEDED,
            Code.DEADLINE_EXCEEDED,
            "model 'double': not answered in time by the server that it runs on",
        ),
    ],
)
def test_errors(near: Gateway, fake: FakeInference, status: Code, code: Code, text: str) -> None:
    """Callers are told what concerns them; the server's own words only where they are meant for them."""
    fake.failures = [status]
    assert refusal(lambda: double(near)) == (code, text)
    assert double(near) == [[2, 2]]


@pytest.mark.parametrize("status", [Code.INTERNAL, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED])
def test_errors_that_are_nobody_elses_business(near: Gateway, fake: FakeInference, status: Code) -> None:
    """What is wrong between gateway and server is INTERNAL with an id, under which the log names server and cause."""
    fake.failures = [status]
    code, text = refusal(lambda: double(near))
    assert code is Code.INTERNAL
    assert "as told" not in text
    number = text.partition(", id ")[2].partition(";")[0]
    near.server.wait_for_log(rf"{number}(?s:.)*127\.0\.0\.1:\d+: {status.name}: as told")


def test_only_the_caller_at_fault_is_refused(near: Gateway, fake: FakeInference) -> None:
    """A server refuses a batch as a whole; whose data is not at fault is answered all the same."""
    fake.failures = [Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT]  # the batch, then the first alone
    calls = [start(near, "pair", [1, 1])]
    arrived(near)
    calls.append(start(near, "pair", [2, 2]))
    assert refusal(calls[0].result) == (Code.INVALID_ARGUMENT, "model 'pair': as told")
    assert values(calls[1]) == [[4, 4]]


@pytest.mark.parametrize(("model", "status"), [("pair", Code.RESOURCE_EXHAUSTED), ("pair_once", Code.INTERNAL)])
def test_a_batch_that_is_not_tried_apart(near: Gateway, fake: FakeInference, model: str, status: Code) -> None:
    """A server that has too much to do does not get a batch once more in parts, nor one that must not be repeated."""
    fake.failures = [status]
    calls = [start(near, model, [1, 1]), start(near, model, [2, 2])]
    assert {refusal(call.result)[0] for call in calls} == {status}
    assert sent(fake) == 1


def test_a_broken_connection(near: Gateway, fake: FakeInference) -> None:
    """A batch that a server may not have executed is sent again, unless the model's owner forbids it."""
    fake.failures = [Code.UNAVAILABLE]
    assert double(near) == [[2, 2]]
    assert sent(fake) == 2
    fake.failures = [Code.UNAVAILABLE]
    told = refusal(lambda: double(near, "once"))
    assert told == (Code.UNAVAILABLE, "model 'once': the server that it ran on is gone: try again")
    assert sent(fake) == 3
    assert double(near, "once") == [[2, 2]]  # it was asked at once, and is ready


def test_traces_go_on(near: Gateway, fake: FakeInference, collector: Collector) -> None:
    """A server's span is below that of the batch that it executes; untraced calls bring it no trace."""
    double(near)
    assert "traceparent" not in fake.metadata
    double(near, metadata=(("traceparent", SAMPLED),))
    (batch,) = collector.wait("batch", where=lambda span: span.attributes["tensorgate.model.name"] == "double")
    assert fake.metadata["traceparent"] == f"00-{batch.trace}-{batch.id}-01"
    (server,) = [span for span in collector.named("ModelInfer") if span.trace == SAMPLED.split("-")[1]]
    assert batch.links == [server.key]


def test_a_server_that_is_not_ready(near: Gateway, fake: FakeInference) -> None:
    """Without a server that is ready callers are told to try again; one that is ready again is used by itself."""
    fake.ready = False
    try:
        text = "model 'double': none of the servers that it runs on is ready: try again shortly"
        eventually(lambda: outcome(near) == (Code.UNAVAILABLE, text))
    finally:
        fake.ready = True
    eventually(lambda: outcome(near) == [[2, 2]])
    near.server.wait_for_log(r"model double: server 127\.0\.0\.1:\d+ is not used: the server is not ready")


def test_metrics_of_servers(near: Gateway, fake: FakeInference) -> None:
    """An operator sees of each server whether it is used, what it has to do and how often it has failed."""
    before = _of_server(near)
    fake.failures = [Code.INTERNAL]
    refusal(lambda: double(near))
    double(near)
    after = _of_server(near)
    assert after["tensorgate_remote_batches_total"] == before["tensorgate_remote_batches_total"] + 2
    assert after["tensorgate_remote_failures_total"] == before["tensorgate_remote_failures_total"] + 1
    assert (after["tensorgate_remote_healthy"], after["tensorgate_remote_in_flight"]) == (1, 0)


def _of_server(gateway: Gateway) -> dict[str, float]:
    return {key[0]: value for key, value in scrape(gateway).items() if "_remote_" in key[0] and "double" in key[1:]}


def test_servers_may_come_later(near: Gateway, late: int) -> None:
    """A gateway that starts before its servers says what it waits for, and serves them once they are there."""
    state, reason = index(near)["late/1"]
    assert state in ("UNAVAILABLE", "LOADING")
    assert state == "LOADING" or f"none of its servers can be used: 127.0.0.1:{late}: UNAVAILABLE" in reason
    with serving_fake(FakeInference(), port=late):
        eventually(lambda: index(near)["late/1"][0] == "READY")
        assert double(near, "late") == [[2, 2]]
    assert near.server.log.count("none of its servers can be used") == 1


def test_what_a_client_reads_of_the_model(near: Gateway) -> None:
    """Metadata and configuration are the server's, and name the backend that runs it."""
    metadata = near.stub.ModelMetadata(pb.ModelMetadataRequest(name="double"))
    assert [(t.name, t.datatype, list(t.shape)) for t in (*metadata.inputs, *metadata.outputs)] == [
        ("x", "FP32", [-1, 2]),
        ("y", "FP32", [-1, 2]),
    ]
    config = near.stub.ModelConfig(pb.ModelConfigRequest(name="double")).config
    assert (config.backend, config.max_batch_size, config.instance_group[0].count) == ("remote", 32, 8)
