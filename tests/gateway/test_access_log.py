"""`--access-log`: a line for each call, and for each request of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.calls import ECHO, ONES, Gate, eventually, refusal
from support.logs import JSON, calls, change_log
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.streams import StreamCall

from tensorgate_client import encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb

MODEL = """
import numpy as np

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        if (inputs["x"] == 13).any():
            raise ValueError
        return {"y": np.ones((len(inputs["x"]), int(inputs["x"][0, 0])), np.float32)}
"""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """What holds the model `held` up."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def gateway(transport: str, repository: RepositoryBuilder, gate: Gate) -> Iterator[Gateway]:
    """A server that keeps an access log."""
    repository.add("echo", config=f"{ECHO} max_batch_size: 8", version=2)
    repository.add("wide", {"model.py": MODEL})
    repository.add("held", gate.files, gate.config)
    arguments = ("--access-log", "--max-message-mb", "1", "--model-control", "explicit")
    with serving(repository.root, "--load-model", "*", *JSON, *arguments) as gateway:
        yield gateway


def infer(gateway: Gateway, model: str, x: np.ndarray, request_id: str = "", **options: float) -> object:
    """Call a model."""
    message = encode_infer_request(model, {"INPUT0" if model == "echo" else "x": x}, request_id=request_id)
    return gateway.stub.ModelInfer(message, **{"timeout": 30, **options})


def told(line: dict[str, object]) -> dict[str, object]:
    """What a line says of a call, without when."""
    assert line["message"] == "call"
    assert line["level"] == "INFO"
    assert line["duration_ms"] >= 0
    return {key: line[key] for key in line.keys() - {"time", "level", "logger", "message", "duration_ms"}}


def test_an_inference_has_a_line(gateway):
    """A line says which version answered which request, with how many rows and how it ended."""
    infer(gateway, "echo", np.ones((3, 4), np.float32), "seven")
    for x, model in [(ONES, "nobody"), (np.ones((1, 5), np.float32), "wide"), (ONES * 13, "wide")]:
        refusal(lambda x=x, model=model: infer(gateway, model, x))
    refusal(lambda: infer(gateway, "wide", ONES * 1_000_000))
    wide = {"rpc": "ModelInfer", "model": "wide", "version": "1"}
    assert [told(line) for line in calls(gateway.server, 5)] == [
        {"rpc": "ModelInfer", "code": "OK", "model": "echo", "version": "2", "request_id": "seven", "rows": 3},
        {"rpc": "ModelInfer", "code": "NOT_FOUND", "model": "nobody"},
        {**wide, "code": "INVALID_ARGUMENT", "rows": 1},
        {**wide, "code": "INTERNAL", "rows": 1},
        {**wide, "code": "RESOURCE_EXHAUSTED", "rows": 1},
    ]


def test_every_other_call_has_a_line(gateway):
    """Probes, questions and control are in the log too, with the model that they are about."""
    stub = gateway.stub
    stub.ServerLive(pb.ServerLiveRequest())
    stub.ModelReady(pb.ModelReadyRequest(name="echo", version="2"))
    refusal(lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")))
    refusal(lambda: stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="region")))
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="echo"))
    refusal(lambda: gateway.channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")(b"\xff"))
    assert [told(line) for line in calls(gateway.server, 6)] == [
        {"rpc": "ServerLive", "code": "OK"},
        {"rpc": "ModelReady", "code": "OK", "model": "echo", "version": "2"},
        {"rpc": "ModelMetadata", "code": "NOT_FOUND", "model": "nobody"},
        {"rpc": "SystemSharedMemoryStatus", "code": "UNIMPLEMENTED"},
        {"rpc": "RepositoryModelUnload", "code": "OK", "model": "echo"},
        {"rpc": "ModelConfig", "code": "INVALID_ARGUMENT"},
    ]


def test_who_did_not_wait_has_a_line(gateway, gate):
    """A call that its caller gave up, or that ran out of time, is in the log as what it was."""
    message = encode_infer_request("held", {"x": np.float32([1])}, request_id="gone")
    call = gateway.stub.ModelInfer.future(message, timeout=60)
    eventually(gate.begun)
    call.cancel()
    gone = calls(gateway.server, 1)
    refusal(lambda: infer(gateway, "held", np.float32([1]), "late", timeout=0.3))
    late = calls(gateway.server, 2)[1:]
    gate.open()
    fields = {"rpc": "ModelInfer", "model": "held", "version": "1", "rows": 1}
    assert [told(line) for line in gone] == [{**fields, "request_id": "gone", "code": "CANCELLED"}]
    assert [told(line) for line in late] == [{**fields, "request_id": "late", "code": "DEADLINE_EXCEEDED"}]


def test_each_request_of_a_stream_has_a_line(gateway):
    """A stream's requests are in the log one by one, also those that fail or cannot be read."""
    with StreamCall(gateway) as stream:
        for number, rows in enumerate([1, 2]):
            stream.send("wide", *ONES.repeat(rows, 0), id=str(number))
        stream.send("nobody", *ONES, id="2")
        stream.send("wide", *ONES * 13, id="3")
        stream.send_message(b"\xff")
        stream.close()
        assert len(list(stream.call)) == 5
    wide = {"rpc": "ModelStreamInfer", "model": "wide", "version": "1"}
    found = sorted((told(line) for line in calls(gateway.server, 5)), key=lambda line: line.get("request_id", ""))
    assert found == [
        {"rpc": "ModelStreamInfer", "code": "INVALID_ARGUMENT"},
        {**wide, "code": "OK", "request_id": "0", "rows": 1},
        {**wide, "code": "OK", "request_id": "1", "rows": 2},
        {"rpc": "ModelStreamInfer", "code": "NOT_FOUND", "model": "nobody", "request_id": "2"},
        {**wide, "code": "INTERNAL", "request_id": "3", "rows": 1},
    ]


def test_an_abandoned_stream_has_all_its_lines(gateway, gate):
    """Whoever leaves a stream leaves a line for each request that was under way."""
    with StreamCall(gateway) as stream:
        for number in range(3):
            stream.send("held", number, id=str(number))
        eventually(gate.begun)
        eventually(lambda: stream.taken == 3)
        stream.send("nobody", 0, id="3", unordered=True)
        assert stream.next().error_message
    found = {line["request_id"]: line["code"] for line in calls(gateway.server, 4)}
    gate.open()
    assert found == {"0": "CANCELLED", "1": "CANCELLED", "2": "CANCELLED", "3": "NOT_FOUND"}


def test_other_levels_do_not_matter(gateway):
    """Whoever wants only errors beside the access log gets just that, and LogSettings itself is a call like others."""
    change_log(gateway, log_info=False, log_warning=False)
    infer(gateway, "echo", ONES)
    assert [line["rpc"] for line in calls(gateway.server, 2)] == ["LogSettings", "ModelInfer"]
