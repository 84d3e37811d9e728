"""tritonclient's streams, unchanged and in a process of their own, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, serving

pytestmark = pytest.mark.timeout(120)
UNKNOWN = "Request for unknown model: 'nobody' is not found"


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with a model that answers at once, and one that takes two seconds."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("identity", {"model.onnx": onnx_identity()})
    repository.add("slow", config='backend: "echo" parameters { key: "delay_ms" value { string_value: "2000" } }')
    with serving(repository.root) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def streams(gateway: Gateway, tritonclient: Any) -> dict[str, Any]:
    """What tritonclient got, by stream."""
    return tritonclient("stream.py", gateway.address, "identity", "slow")


@pytest.mark.parametrize("way", ["plain", "final"])
def test_a_stream_answers_in_order(streams: dict[str, Any], way: str) -> None:
    """async_stream_infer gets every answer with its id, in order, each marked as the last to its request."""
    assert streams[way] == [[str(number), number, True] for number in range(50)]


def test_requests_may_be_unordered(streams: dict[str, Any]) -> None:
    """Through tritonclient, too, a request can carry the parameter that lets a response overtake."""
    assert streams["unordered"] == [["0", 0, True]]


def test_errors_do_not_end_a_stream(streams: dict[str, Any]) -> None:
    """An error reaches the callback in its turn, and later requests are answered."""
    assert streams["error"] == [["0", 0, True], [None, UNKNOWN], ["2", 2, True]]


def test_errors_as_status(streams: dict[str, Any]) -> None:
    """With the header `triton_grpc_error` the error has a status and ends the stream."""
    assert streams["status"] == [["0", 0, True], ["StatusCode.NOT_FOUND", UNKNOWN]]


def test_a_streams_time_out_is_kept(streams: dict[str, Any]) -> None:
    """`stream_timeout` ends the stream with an error."""
    assert streams["timeout"] == [["StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded"]]


def test_a_stream_can_be_cancelled(streams: dict[str, Any]) -> None:
    """stop_stream(cancel_requests=True) returns at once, and what was under way reports that it was cancelled."""
    assert streams["cancelled"] == [["StatusCode.CANCELLED", "Locally cancelled by application!"]]


def test_the_asyncio_client_streams(streams: dict[str, Any]) -> None:
    """stream_infer of the asyncio client gets the same answers and errors."""
    assert streams["asyncio"] == [["0", 0, True], [None, UNKNOWN], ["2", 2, True]]
