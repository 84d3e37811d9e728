"""Traces, as a collector gets them from a running server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import ECHO, Gate, eventually, first_output, infer, refusal, request
from support.concurrent import POISON, UNFIT, arrived, moody, start, values
from support.models import RepositoryBuilder
from support.otlp import ERROR, INTERNAL, SERVER, Collector, Span, collecting
from support.server import Gateway, serving
from support.streams import StreamCall

from tensorgate_client.wire import inference_pb2 as pb

INFER = "inference.GRPCInferenceService/ModelInfer"
STAGES = ["decode", "queue", "execute", "encode"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"
CACHED = ECHO + "response_cache { enable: true }"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Takes what the servers export."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(
    transport: str, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Gate]]:
    """A server all of whose calls are sampled, and the gate that `moody` waits for, open."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    gate = Gate(tmp_path_factory.mktemp("gate") / transport)
    gate.open()
    repository.add("plain", {}, ECHO)
    repository.add("cached", {}, CACHED)
    repository.add("moody", moody(gate), gate.config + "max_batch_size: 16")
    repository.add("kept", moody(gate), gate.config + "response_cache { enable: true }")
    with serving(repository.root, environment=collector.environment()) as gateway:
        yield gateway, gate


def call(gateway: Gateway, model: str, number: str, **metadata: str) -> None:
    """A good call that can be told by its id."""
    message = request(model, {"INPUT0": np.ones((1, 4), np.float32)})
    message.id = number
    gateway.stub.ModelInfer(message, timeout=60, metadata=tuple(metadata.items()))


def of(number: str):
    """Whether a span is of the request of that id."""
    return lambda span: span.attributes.get("tensorgate.request.id") == number


def stages_of(collector: Collector, server: Span) -> list[Span]:
    """The stages below a span in the order of their beginnings."""
    return sorted(collector.below(server).values(), key=lambda span: span.start_time_unix_nano)


def test_a_call_and_its_stages(traced, collector: Collector, transport: str):
    """A call is a server span by the conventions, with its stages below it, one after the other and nothing between."""
    gateway, _ = traced
    call(gateway, "plain", f"one {transport}")
    (server,) = collector.wait("ModelInfer", where=of(f"one {transport}"))
    assert (server.name, server.kind, server.parent, server.status.code) == (INFER, SERVER, "", 0)
    told = server.attributes
    assert told.pop("tensorgate.request.id")
    assert told == {
        "rpc.system.name": "grpc",
        "rpc.method": INFER,
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "tensorgate.model.name": "plain",
        "tensorgate.model.version": "1",
        "tensorgate.backend": "echo",
    }
    assert server.resource["service.name"] == "tensorgate"
    stages = stages_of(collector, server)
    assert [stage.name for stage in stages] == STAGES
    assert {stage.kind for stage in stages} == {INTERNAL}
    ends = [server.start_time_unix_nano, *(stage.end_time_unix_nano for stage in stages)]
    assert [stage.start_time_unix_nano for stage in stages] == ends[:-1]
    assert ends[-1] <= server.end_time_unix_nano


def test_other_calls_have_a_span_too(traced, collector: Collector):
    """Every RPC is a server span; one that asks for what is not there says so, and is no error of the server's."""
    gateway, _ = traced
    gateway.stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=60)
    collector.wait("ServerMetadata")
    before = len(collector.named("ModelMetadata"))
    refusal(lambda: gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody"), timeout=60))
    span = collector.wait("ModelMetadata", before + 1)[-1]
    assert span.attributes["rpc.response.status_code"] == span.attributes["error.type"] == "NOT_FOUND"
    assert span.status.code == 0


@pytest.mark.parametrize(("value", "code"), [(POISON, Code.INTERNAL), (UNFIT, Code.INVALID_ARGUMENT)])
def test_an_error_has_its_event(traced, collector: Collector, value: float, code: Code, transport: str):
    """A failed call has an event with what the caller was told; only the server's own faults are errors."""
    gateway, _ = traced
    number = f"{value} {transport}"
    told = refusal(lambda: start(gateway, "moody", value, id=number).result(60))
    (span,) = collector.wait("ModelInfer", where=of(number))
    (event,) = span.events
    attributes = {pair.key: pair.value.string_value for pair in event.attributes}
    assert event.name == "exception"
    assert attributes == {"exception.type": code.name, "exception.message": told[1]}
    assert (span.status.code == ERROR) is (code is Code.INTERNAL)
    assert "secret" not in str(span.proto)
    assert "execute" in collector.below(span)


def test_batches_and_their_members(traced, collector: Collector, transport: str):
    """64 requests at once run in a few batches: each leads to one, which leads to just its members."""
    gateway, gate = traced
    gate.shut()
    first = [start(gateway, "moody", 1, id=f"b{transport}0")]
    eventually(lambda: gate.begun()[-1:] == ["1"])
    others = [start(gateway, "moody", n, id=f"b{transport}{n}") for n in range(1, 64)]
    arrived(gateway)
    gate.open()
    for each in first + others:
        values(each)
    mine = lambda span: span.attributes.get("tensorgate.request.id", "").startswith(f"b{transport}")  # noqa: E731
    members = {span.key: collector.below(span)["execute"] for span in collector.wait("ModelInfer", 64, mine)}
    leads = {key: execute.links for key, execute in members.items()}
    batches = {link for links in leads.values() for link in links}
    roots = {b.key: b for b in collector.wait("batch", len(batches), lambda span: span.key in batches)}
    assert set(roots) == batches
    assert all(len(links) == 1 for links in leads.values())
    for key, batch in roots.items():
        assert not batch.parent
        assert sorted(batch.links) == sorted(member for member, (link,) in leads.items() if link == key)
        assert batch.attributes["tensorgate.batch.requests"] == len(batch.links)
        assert batch.attributes["tensorgate.batch.size"] == len(batch.links)
        assert batch.attributes["tensorgate.batch.padding"] == 0
        assert batch.attributes["tensorgate.model.name"] == "moody"
        assert batch.attributes["tensorgate.instance"].startswith("moody/1")
        assert list(collector.below(batch)) == ["assemble", "infer", "split"]
    assert sum(batch.attributes["tensorgate.batch.size"] for batch in roots.values()) == 64
    assert len(roots) <= 6


def test_what_the_cache_did(traced, collector: Collector, transport: str):
    """A call says whether the cache had its answer; what it had takes no other stage."""
    gateway, _ = traced
    array = np.float32([[1, 2, 3, len(transport)]])
    for number in ("first", "second"):
        message = request("cached", {"INPUT0": array})
        message.id = f"{number} {transport}"
        gateway.stub.ModelInfer(message, timeout=60)
    (miss,), (hit,) = (collector.wait("ModelInfer", where=of(f"{n} {transport}")) for n in ("first", "second"))
    assert (miss.attributes["tensorgate.cache"], hit.attributes["tensorgate.cache"]) == ("miss", "hit")
    assert [stage.name for stage in stages_of(collector, miss)] == ["cache", *STAGES]
    assert [stage.name for stage in stages_of(collector, hit)] == ["cache"]


def test_what_waited_for_another(traced, collector: Collector, transport: str):
    """A call that waited for an equal one's answer leads to the batch which that was computed in."""
    gateway, gate = traced
    gate.shut()
    calls = [start(gateway, "kept", 5, id=f"leader {transport}")]
    eventually(lambda: gate.begun()[-1:] == ["5"])
    calls.append(start(gateway, "kept", 5, id=f"joined {transport}"))
    arrived(gateway)
    gate.open()
    assert [values(call) for call in calls] == [[10], [10]]
    leader, joined = (collector.wait("ModelInfer", where=of(f"{n} {transport}"))[0] for n in ("leader", "joined"))
    assert joined.attributes["tensorgate.cache"] == "joined"
    (link,) = collector.below(joined)["queue"].links
    assert collector.below(leader)["execute"].links == [link]
    (batch,) = collector.wait("batch", where=lambda span: span.key == link)
    assert batch.links == [leader.key]


def test_a_stream_and_its_requests(traced, collector: Collector, transport: str):
    """A stream is one server span; its requests are below it with their positions and stages, also one that fails."""
    gateway, _ = traced
    with StreamCall(gateway) as stream:
        stream.send("moody", 1, id=f"s0{transport}")
        stream.send("nobody", 2, id=f"s1{transport}")
        stream.close()
        assert len(stream.rest()) == 2
    good, bad = (collector.wait("request", where=of(f"s{n}{transport}"))[0] for n in (0, 1))
    (server,) = collector.wait("ModelStreamInfer", where=lambda span: span.id == good.parent)
    assert server.kind == SERVER
    assert bad.parent == server.id
    assert [span.attributes["tensorgate.stream.position"] for span in (good, bad)] == [0, 1]
    assert [stage.name for stage in stages_of(collector, good)] == STAGES
    assert bad.attributes["tensorgate.status_code"] == "NOT_FOUND"
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert max(good.end_time_unix_nano, bad.end_time_unix_nano) <= server.end_time_unix_nano


def test_a_stream_that_is_left(traced, collector: Collector, transport: str):
    """A stream whose caller goes away is traced, and what was under way is below it and no longer than it."""
    gateway, gate = traced
    gate.shut()
    with StreamCall(gateway) as stream:
        stream.send("moody", 3, id=f"left{transport}")
        eventually(lambda: gate.begun()[-1:] == ["3"])
    (left,) = collector.wait("request", where=of(f"left{transport}"))
    (server,) = collector.wait("ModelStreamInfer", where=lambda span: span.id == left.parent)
    gate.open()
    assert left.attributes["tensorgate.status_code"] == "CANCELLED"
    assert server.start_time_unix_nano <= left.start_time_unix_nano
    assert left.end_time_unix_nano <= server.end_time_unix_nano


def test_the_callers_trace_goes_on(traced, collector: Collector, transport: str):
    """A caller's sampled trace is continued, with its state; one that is not sampled is not, whatever the rate."""
    gateway, _ = traced
    ids = PARENT.format(flags="01")
    call(gateway, "plain", f"unsampled {transport}", traceparent=PARENT.format(flags="00"))
    call(gateway, "plain", f"sampled {transport}", traceparent=ids, tracestate="vendor=a1,other=b2")
    (span,) = collector.wait("ModelInfer", where=of(f"sampled {transport}"))
    assert (span.trace, span.parent) == tuple(ids.split("-")[1:3])
    assert span.trace_state == "vendor=a1,other=b2"
    assert len(collector.below(span)) == 4
    assert not [each for each in collector.named("ModelInfer") if of(f"unsampled {transport}")(each)]


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", "00-zz-b7ad6b7169203331-01", f"00-{'0' * 32}-{'1' * 16}-01", PARENT.format(flags="01").upper()],
)
def test_a_parent_that_is_none(traced, collector: Collector, header: str, transport: str):
    """A malformed trace context is passed over: the call begins a trace of its own."""
    gateway, _ = traced
    number = f"odd {header} {transport}"
    call(gateway, "plain", number, traceparent=header)
    (span,) = collector.wait("ModelInfer", where=of(number))
    assert not span.parent
    assert int(span.trace, 16)


def test_metrics_name_traces(tmp_path, collector: Collector, repository: RepositoryBuilder):
    """In the OpenMetrics format, the histogram of requests names a trace for each bucket."""
    import urllib.request  # noqa: PLC0415

    repository.add("plain", {}, ECHO)
    with serving(repository.root, "--metrics-port", "0", environment=collector.environment()) as gateway:
        where = gateway.server.wait_for_log(r"metrics on (\S+)").group(1)
        call(gateway, "plain", "exemplar")
        (span,) = collector.wait("ModelInfer", where=of("exemplar"))
        asked = urllib.request.Request(where, headers={"accept": "application/openmetrics-text; version=1.0.0"})  # noqa: S310
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
            page = answer.read().decode()
        assert f'# {{trace_id="{span.trace}"}}' in page
        assert "tensorgate_spans_dropped_total 0.0" in page


def test_no_call_is_late_for_its_trace(repository: RepositoryBuilder, collector: Collector):
    """What a server answered before it was told to stop is exported before it is gone."""
    repository.add("plain", {}, ECHO)
    environment = collector.environment(OTEL_BSP_SCHEDULE_DELAY="600000")
    with serving(repository.root, environment=environment) as gateway:
        for number in range(20):
            call(gateway, "plain", f"last {number}")
        gateway.server.signal()
        assert gateway.server.wait() == 0
    kept = [span.attributes.get("tensorgate.request.id", "") for span in collector.named("ModelInfer")]
    assert len([number for number in kept if number.startswith("last")]) == 20


def test_first_output_is_untouched(traced):
    """Tracing changes no answer."""
    gateway, _ = traced
    array = np.float32([[5, 6, 7, 8]])
    assert np.array_equal(infer(gateway, "plain", array), array)
    assert np.array_equal(first_output(gateway.stub.ModelInfer(request("plain", {"INPUT0": array}))), array)
    assert isinstance(gateway.channel, grpc.Channel)
