"""A gateway in front of two others: which of them works, and what is lost when one goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import Gate, eventually, load, refusal, request, unload
from support.concurrent import POISON, UNFIT, moody, start, statistics, values
from support.models import RepositoryBuilder
from support.remote import Load, remote
from support.server import Gateway, connected, free_port, launch, serving

from tensorgate_client.tensors import DTYPES, decode_infer_response
from tensorgate_client.wire import inference_pb2 as pb

DOUBLE = """
class Model:
    inputs, outputs = [("x", "float32", (-1, 4))], [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        return {"y": inputs["x"] * 2}
"""
THREE_TOGETHER = "dynamic_batching { preferred_batch_size: 3 max_queue_delay_microseconds: 60000000 }\n"


def tensors(kind: str) -> str:
    """A tensor of each datatype, as config.pbtxt declares them."""
    types = ((name, "STRING" if name == "BYTES" else name) for name in DTYPES)
    return "".join(f'{kind} {{ name: "{kind}_{n}" data_type: TYPE_{t} dims: [ 3 ] }}\n' for n, t in types)


class Far:
    """One of the gateways behind, on the same port each time it is started."""

    def __init__(self, repository: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._repository = repository
        self._running = ExitStack()
        self.gateway: Gateway

    def launch(self) -> None:
        """Start it, without waiting until it is ready."""
        where = ("--model-repository", self._repository, "--port", str(self.port))
        explicit = ("--model-control", "explicit", "--load-model", "*")
        self._server = self._running.enter_context(launch(*where, *explicit))

    def wait(self) -> None:
        """Return when it is ready."""
        self._server.wait_until_ready()
        self.gateway = self._running.enter_context(connected(self._server, self.address))

    @property
    def runs(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._server.process.poll() is None

    def stop(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        self._server.signal(number)
        self._server.wait()
        self._running.close()

    def close(self) -> None:
        """End it."""
        self._running.close()

    def executed(self, model: str = "double") -> int:
        """How many batches of a model it has executed."""
        return statistics(self.gateway, model).execution_count


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Far, Far]]:
    """A gateway, and the two behind it."""
    far, near = (RepositoryBuilder(tmp_path_factory.mktemp(name)) for name in ("far", "near"))
    gate = Gate(tmp_path_factory.mktemp("gate") / "open")
    gate.open()
    far.add("double", {"model.py": DOUBLE}, "max_batch_size: 16")
    far.add("every", {}, 'backend: "echo"\nmax_batch_size: 8\n' + tensors("input") + tensors("output"))
    far.add("moody", moody(gate), gate.config + "max_batch_size: 16")
    first, second = Far(far.root), Far(far.root)
    with ExitStack() as running:
        for server in (first, second):
            running.callback(server.close)
            server.launch()
        for server in (first, second):
            server.wait()
        for name, more in (("double", ""), ("every", ""), ("moody", THREE_TOGETHER)):
            near.add(name, {}, remote(first.address, second.address) + more)
        yield running.enter_context(serving(near.root)), first, second


def test_every_datatype(fleet: tuple[Gateway, Far, Far]) -> None:
    """Tensors of all datatypes, as many as a model has, go there and back unchanged; so do the outputs asked for."""
    near, _, _ = fleet
    random = np.random.default_rng(0)
    inputs = {f"input_{name}": random.integers(0, 2, (2, 3)).astype(dtype) for name, dtype in DTYPES.items()}
    inputs["input_BYTES"] = np.array([[b"", b"\xff\x00", "ä".encode()], [b"x" * 5000, b"1", b"2"]], np.object_)
    message = request("every", inputs)
    outputs = decode_infer_response(near.stub.ModelInfer(message, timeout=60))
    assert list(outputs) == [f"output_{name}" for name in DTYPES]
    for name in DTYPES:
        np.testing.assert_array_equal(outputs[f"output_{name}"], inputs[f"input_{name}"], strict=True)
    message.outputs.add(name="output_BF16")
    assert list(decode_infer_response(near.stub.ModelInfer(message, timeout=60))) == ["output_BF16"]


def test_faults_stay_apart(fleet: tuple[Gateway, Far, Far]) -> None:
    """In a batch of three, one that the model fails on and one that it refuses, the third is answered."""
    near, _, _ = fleet
    good, poisonous, unfit = (start(near, "moody", value) for value in (1, POISON, UNFIT))
    assert values(good) == [2]
    code, text = refusal(poisonous.result)
    assert code is Code.INTERNAL
    assert "secret" not in text
    assert refusal(unfit.result) == (Code.INVALID_ARGUMENT, f"model 'moody': x: expected anything but {UNFIT:g}")


def test_a_model_that_a_server_unloads(fleet: tuple[Gateway, Far, Far]) -> None:
    """A server that ceases to serve the model is spared, and works again once it serves it; nobody notices."""
    near, first, second = fleet
    with Load(near, "double") as callers:
        eventually(lambda: first.executed() and second.executed())
        unload(first.gateway, "double")
        callers.more(100)
        load(first.gateway, "double")
        eventually(lambda: callers.failures or first.executed())
    assert callers.failures == []


def test_a_server_that_is_killed(fleet: tuple[Gateway, Far, Far]) -> None:
    """Of the calls that a server has when it is killed, or stopped, none is lost; one that comes back works again."""
    near, first, second = fleet
    with Load(near, "double") as callers:
        first.stop(signal.SIGKILL)
        callers.more(100)
        first.launch()
        first.wait()
        eventually(lambda: callers.failures or first.executed())
        second.stop(signal.SIGTERM)
        callers.more(100)
    assert callers.failures == []
    near.server.wait_for_log(f"server {second.address} is not used")


def test_a_model_without_a_server(fleet: tuple[Gateway, Far, Far]) -> None:
    """A model of which no server is left is not ready, so that callers go elsewhere; it is once one is back, soon."""
    near, first, second = fleet

    def ready() -> bool:
        return near.stub.ModelReady(pb.ModelReadyRequest(name="double"), timeout=60).ready

    assert ready()
    for server in (first, second):
        if server.runs:
            server.stop(signal.SIGKILL)
    eventually(lambda: not ready())
    first.launch()
    first.wait()
    eventually(ready, timeout=10)
