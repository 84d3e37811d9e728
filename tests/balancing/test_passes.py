"""What nginx and Envoy let through: all that the protocol promises without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from support.balancing import Balanced
from support.calls import Gate, eventually, first_output, refusal, request
from support.otlp import Collector
from support.server import Gateway, connected
from support.streams import StreamCall

pytestmark = pytest.mark.parametrize("fleet", ["nginx", "envoy"], indirect=True)

ONE = np.float32([[1]])


@pytest.fixture(scope="module")
def through(fleet: Balanced) -> Iterator[Gateway]:
    """A channel to what stands in front of the gateways."""
    fleet.mend()
    with connected(fleet.members[0].server, fleet.address) as gateway:
        yield gateway


def told(fleet: Balanced, **fields: Any) -> list[dict[str, Any]]:
    """The lines of both access logs with these fields."""
    return [line for member in fleet.members for line in member.lines(**fields)]


def test_deadlines(fleet: Balanced, through: Gateway) -> None:
    """A gateway knows how long its caller waits: it refuses what would take longer."""
    late = request("late", {"INPUT0": ONE})
    while not all(member.lines(model="late", code="OK") for member in fleet.members):
        through.stub.ModelInfer(late, timeout=60)
    late.id = "hurried"
    code, _ = refusal(lambda: through.stub.ModelInfer(late, timeout=0.25))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: told(fleet, request_id="hurried", code="DEADLINE_EXCEEDED"))


def test_cancellation(fleet: Balanced, through: Gateway, gate: Gate) -> None:
    """The gateway learns that a caller has gone, from a call and from a stream."""
    before = len(gate.begun())
    message = request("slow", {"x": np.float32([5])})
    message.id = "gone"
    call = through.stub.ModelInfer.future(message, timeout=60)
    with StreamCall(through) as stream:
        stream.send("slow", 5, id="gone")
        stream.send("echo", [5], name="INPUT0", unordered=True)
        assert stream.value() == [[5]]  # so the one before it has arrived, too
        eventually(lambda: len(gate.begun()) > before)
        call.cancel()
    for rpc in ("ModelInfer", "ModelStreamInfer"):
        eventually(lambda: told(fleet, rpc=rpc, request_id="gone", code="CANCELLED"))  # noqa: B023  # called at once


def test_errors(through: Gateway) -> None:
    """Statuses come with their text, whatever letters it has; in a stream too."""
    wanted = "Request for unknown model: 'größe 数' is not found"
    code, details = refusal(lambda: through.stub.ModelInfer(request("größe 数", {"x": ONE}), timeout=60))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, wanted)
    with StreamCall(through, triton_grpc_error="true") as stream:  # metadata that turns errors into the end
        stream.send("größe 数", 1)
        code, details = stream.end()
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, wanted)


def test_traces(through: Gateway, collector: Collector) -> None:
    """A caller's trace goes on in the gateway."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    metadata = [("traceparent", f"00-{trace}-{span}-01")]
    through.stub.ModelInfer(request("echo", {"INPUT0": ONE}), timeout=60, metadata=metadata)
    (found,) = eventually(lambda: [each for each in collector.spans if (each.trace, each.parent) == (trace, span)])
    assert found.name == "inference.GRPCInferenceService/ModelInfer"


def test_large_messages(through: Gateway) -> None:
    """Requests and responses up to the gateways' limit pass; one above it is refused in the gateway's words."""
    large = np.arange(4_100_000, dtype=np.float32).reshape(1, -1)  # 15.6 MiB of 16
    response = through.stub.ModelInfer(request("echo", {"INPUT0": large}), timeout=60)
    np.testing.assert_array_equal(first_output(response), large)
    too_large = request("echo", {"INPUT0": np.zeros((1, 4_200_000), np.float32)})
    code, details = refusal(lambda: through.stub.ModelInfer(too_large, timeout=60))
    assert (code, "larger than max" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


def test_compression(through: Gateway) -> None:
    """Compressed requests pass."""
    zeros = np.zeros((4, 100_000), np.float32)
    message = request("echo", {"INPUT0": zeros})
    response = through.stub.ModelInfer(message, timeout=60, compression=grpc.Compression.Gzip)
    np.testing.assert_array_equal(first_output(response), zeros)


def test_many_calls_at_once(fleet: Balanced, through: Gateway, gate: Gate) -> None:
    """1,500 calls over two connections wait together, and none is refused."""
    message = request("slow", {"x": np.float32([7])})
    before = len(gate.begun())
    with connected(through.server, fleet.address) as other:
        calls = [each.stub.ModelInfer.future(message, timeout=60) for each in (through, other) * 750]
        eventually(lambda: len(gate.begun()) > before)
        gate.open()
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}
