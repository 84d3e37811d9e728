"""A gateway in front of a real Triton and of another gateway that has the same model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers.servers import triton
from grpc import StatusCode as Code
from support.calls import eventually, index, refusal, request
from support.concurrent import start, statistics, values
from support.models import RepositoryBuilder
from support.otlp import Collector, Span, collecting
from support.remote import Load, remote
from support.server import Gateway, ServerProcess, connected, free_port, serving

from tensorgate_client.tensors import DTYPES, decode_infer_response
from tensorgate_client.wire import inference_pb2 as pb

HERE = Path(__file__).parent
PYTHON = 'backend: "python"\n'
ROWS = """
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
DOUBLE = """
class Model:
    def execute(self, inputs):
        return {"y": inputs["x"] * 2}
"""
NAMES = [name for name in DTYPES if name != "BF16"]  # which Triton's Python models do not know
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def tensors(kind: str) -> str:
    """A tensor of each datatype."""
    types = ((name, "STRING" if name == "BYTES" else name) for name in NAMES)
    return "".join(f'{kind} {{ name: "{kind}_{n}" data_type: TYPE_{t} dims: [ 3 ] }}\n' for n, t in types)


class Fleet:
    """Triton, a gateway with the same model, and the gateway in front."""

    def __init__(self, folder: Path, collector: Collector, running: ExitStack) -> None:
        self._collector = collector
        far = RepositoryBuilder(folder / "far")
        far.add("double", {"model.py": DOUBLE}, ROWS)
        self.folder = folder / "triton" / "models"
        models = RepositoryBuilder(self.folder)
        double, identity = ({"model.py": HERE / f"triton_{name}.py"} for name in ("double", "identity"))
        models.add("double", double, PYTHON + ROWS)
        models.add("alone", double, PYTHON + ROWS)
        models.add("decoupled", double, PYTHON + ROWS + DECOUPLED)
        models.add("every", identity, PYTHON + "max_batch_size: 8\n" + tensors("input") + tensors("output"))
        self.triton = self._triton(running)
        self.other = running.enter_context(serving(far.root))
        near = RepositoryBuilder(folder / "near")
        near.add("double", {}, remote(self.triton.address, self.other.address))
        for name in ("alone", "decoupled", "every"):
            near.add(name, {}, remote(self.triton.address))
        self.near = running.enter_context(
            serving(near.root, environment=collector.environment(TENSORGATE_TRACE_RATE="0"))
        )

    def _triton(self, running: ExitStack) -> Gateway:
        port = free_port()
        launch = triton(self.folder, port)
        server = ServerProcess([*launch.command, *self._tracing()], launch.environment)
        running.callback(server.kill)
        server.wait_for_log(launch.ready, timeout=180)
        return running.enter_context(connected(server, f"127.0.0.1:{port}"))

    def _tracing(self) -> list[str]:
        url = f"opentelemetry,url=http://{self._collector.http}/v1/traces"
        delay = "opentelemetry,bsp_schedule_delay=50"
        settings = ("mode=opentelemetry", url, delay, "level=TIMESTAMPS", "rate=0")
        return [word for setting in settings for word in ("--trace-config", setting)]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Takes what the gateway and Triton export."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Fleet]:
    """All servers, ready."""
    with ExitStack() as running:
        yield Fleet(tmp_path_factory.mktemp("fleet"), collector, running)


def test_what_the_model_takes(fleet: Fleet) -> None:
    """The gateway tells of a model what Triton tells."""
    wanted, found = (g.stub.ModelMetadata(pb.ModelMetadataRequest(name="every")) for g in (fleet.triton, fleet.near))
    assert (list(found.inputs), list(found.outputs)) == (list(wanted.inputs), list(wanted.outputs))
    assert fleet.near.stub.ModelConfig(pb.ModelConfigRequest(name="every")).config.max_batch_size == 8


def test_every_datatype(fleet: Fleet) -> None:
    """Tensors of all datatypes that Triton knows go there and back unchanged."""
    random = np.random.default_rng(0)
    inputs = {f"input_{name}": random.integers(0, 2, (2, 3)).astype(DTYPES[name]) for name in NAMES}
    inputs["input_BYTES"] = np.array([[b"", b"\xff\x00", b"a"], [b"x" * 5000, b"1", b"2"]], np.object_)
    outputs = decode_infer_response(fleet.near.stub.ModelInfer(request("every", inputs), timeout=60))
    for name in NAMES:
        np.testing.assert_array_equal(outputs[f"output_{name}"], inputs[f"input_{name}"], strict=True)


def test_faults(fleet: Fleet) -> None:
    """What Triton finds at fault with a request its caller reads; what Triton's model fails with stays in the log."""
    assert values(start(fleet.near, "alone", [1] * 4)) == [[2] * 4]
    assert refusal(start(fleet.near, "alone", [404] * 4).result) == (
        Code.INVALID_ARGUMENT,
        "model 'alone': x does not fit",
    )
    code, text = refusal(start(fleet.near, "alone", [666] * 4).result)
    assert code is Code.INTERNAL
    assert "secret" not in text
    assert f"{fleet.triton.address}: INTERNAL: secret" in fleet.near.server.log


def test_cancelling(fleet: Fleet) -> None:
    """A request whose caller has gone, or cannot wait any longer, is cancelled in Triton."""
    noted = fleet.folder / "alone" / "cancelled"
    call = start(fleet.near, "alone", [1000] * 4)
    eventually(lambda: fleet.near.server.process.poll() is None and statistics(fleet.near, "alone"))
    call.cancel()
    eventually(noted.exists)
    noted.unlink()
    assert refusal(start(fleet.near, "alone", [1000] * 4, timeout=0.5).result)[0] is Code.DEADLINE_EXCEEDED
    eventually(noted.exists)


def test_a_decoupled_model(fleet: Fleet) -> None:
    """A model that may answer more than once is refused, and the owner reads why."""
    state, reason = index(fleet.near)["decoupled/1"]
    assert "the model is decoupled" in reason or state == "LOADING"


def test_traces(fleet: Fleet, collector: Collector) -> None:
    """Triton's span of a traced call is below that of the gateway's batch."""
    message = request("alone", {"x": np.ones((1, 4), np.float32)})
    fleet.near.stub.ModelInfer(message, timeout=60, metadata=(("traceparent", SAMPLED),))
    (batch,) = collector.wait("batch")
    eventually(lambda: any((span.trace, span.parent) == batch.key for span in _tritons(collector)))


def _tritons(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.resource["service.name"] != "tensorgate"]


def test_a_triton_that_is_killed(fleet: Fleet) -> None:
    """Triton and a gateway share the work; when Triton is killed, no call is lost."""
    with Load(fleet.near, "double") as callers:
        eventually(lambda: all(statistics(g, "double").execution_count > 20 for g in (fleet.triton, fleet.other)))
        fleet.triton.server.signal(signal.SIGKILL)
        callers.more(200)
    assert callers.failures == []
