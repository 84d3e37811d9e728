"""Traces as an engineer finds them in a tracing backend, MLflow, behind a real collector."""

from __future__ import annotations

from support.otlp import ERROR, Span
from support.traced_calls import BATCHES, MEMBERS, ROWS, Traces

STAGES = ["decode", "queue", "execute", "encode"]


def duration(span: Span) -> int:
    """How long it took, in nanoseconds."""
    return span.end_time_unix_nano - span.start_time_unix_nano


def test_every_span_is_within_the_one_above_it(traces: Traces) -> None:
    """A trace is one tree: no span's parent is missing, and none begins before its parent or ends after it."""
    known = {span.key: span for span in traces.spans}
    for span in traces.spans:
        if span.parent:
            parent = known[span.trace, span.parent]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano


def test_stages_add_up_to_the_request(traces: Traces) -> None:
    """The stages of a request follow each other without a gap, and hardly any of its time is outside them."""
    for member in traces.members:
        stages = traces.below(member)
        assert [stage.name for stage in stages] == STAGES
        ends = [member.start_time_unix_nano, *(stage.end_time_unix_nano for stage in stages)]
        assert [stage.start_time_unix_nano for stage in stages] == ends[:-1]
    told = sum(duration(stage) for member in traces.members for stage in traces.below(member))
    assert told > 0.95 * sum(map(duration, traces.members))


def test_requests_and_their_batches(traces: Traces) -> None:
    """64 requests at once ran in 4 batches: each leads to the one it ran in, which leads to just its members."""
    executions = {member.key: traces.below(member)[STAGES.index("execute")] for member in traces.members}
    assert {len(execution.links) for execution in executions.values()} == {1}
    batches = [batch for batch in traces.named("batch") if batch.attributes["tensorgate.model.name"] == "digits"]
    assert len(batches) == BATCHES
    assert sum(len(batch.links) for batch in batches) == MEMBERS
    for batch in batches:
        assert not batch.parent
        members = [key for key, execution in executions.items() if execution.links == [batch.key]]
        assert sorted(batch.links) == sorted(members)
        for key in members:
            assert executions[key].start_time_unix_nano == batch.start_time_unix_nano
            assert executions[key].end_time_unix_nano == batch.end_time_unix_nano
        assert batch.attributes["tensorgate.batch.requests"] == len(members)
        assert batch.attributes["tensorgate.batch.size"] == ROWS * len(members)
        assert traces.stages(batch) == ["assemble", "infer", "split"]


def test_an_error_has_its_event(traces: Traces) -> None:
    """A request that the model failed on is an error in the backend, with what the caller was told and no more."""
    failed = traces.request("failed")
    assert failed.status.code == ERROR
    (event,) = failed.events
    told = {pair.key: pair.value.string_value for pair in event.attributes}
    assert (event.name, told["exception.type"]) == ("exception", "INTERNAL")
    assert "broken" in told["exception.message"]
    assert "execute" in traces.stages(failed)
    assert "secret" not in str([span.proto for span in traces.spans])


def test_what_the_cache_had(traces: Traces) -> None:
    """A request answered by the cache is told apart from one that was computed, and has no stage but the cache."""
    assert traces.request("miss").attributes["tensorgate.cache"] == "miss"
    assert traces.stages(traces.request("miss")) == ["cache", *STAGES]
    assert traces.request("hit").attributes["tensorgate.cache"] == "hit"
    assert traces.stages(traces.request("hit")) == ["cache"]


def test_a_stream(traces: Traces) -> None:
    """A stream is one trace: its requests are below it, each with its position and its stages."""
    (stream,) = traces.named("inference.GRPCInferenceService/ModelStreamInfer")
    requests = [traces.request(f"position {position}") for position in range(3)]
    assert [request.parent for request in requests] == [stream.id] * 3
    assert [request.attributes["tensorgate.stream.position"] for request in requests] == [0, 1, 2]
    for request in requests:
        assert traces.stages(request) == ["cache", *STAGES]
