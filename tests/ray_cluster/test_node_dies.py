"""A node is lost under load: what its actors had is executed elsewhere, and they come back where there is room."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.calls import ONES, eventually, ready, request
from support.concurrent import parameter
from support.metrics import of_model, scrape
from support.models import RepositoryBuilder
from support.server import Gateway

from tensorgate_client import decode_infer_response

SLEEPER = """
import os, time
import numpy as np
import ray
from pathlib import Path

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4)), ("node", object, (-1, 1)), ("bulk", "uint8", (-1, 300_000))]

    def load(self, source):
        self.node = ray.get_runtime_context().get_node_id().encode()
        self.seconds = float(source.parameters["seconds"])
        self.log = Path(source.parameters["log"])

    def execute(self, inputs):
        with self.log.open("a") as file:
            print(*map(int, inputs["x"][:, 0]), file=file)
        time.sleep(self.seconds)
        rows = len(inputs["x"])  # the bulk stays in the node's memory until it is fetched
        node, bulk = np.array([[self.node]] * rows, object), np.zeros((rows, 300_000), np.uint8)
        return {"y": inputs["x"] * 2, "node": node, "bulk": bulk}
"""
"""Takes a while, writes down what it executes, says where it is."""


def sleeper(seconds: float, log: Path, more: str = "") -> str:
    """The configuration of a sleeper."""
    return parameter("seconds", seconds) + parameter("log", log) + more


@pytest.fixture(scope="module")
def head(nodes: Any) -> str:
    """The node that stays."""
    return str(nodes.add(2))


@pytest.fixture
def victim(nodes: Any, head: str) -> str:
    """The node that does not, and has the only GPU."""
    return str(nodes.add(2, 1))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What a sleeper writes down."""
    written = tmp_path / "written"
    written.touch()
    return written


class Callers(threading.Thread):
    """Callers in a closed loop, each of whom keeps what it was told."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        super().__init__()
        self.nodes: list[str] = []
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self._gateway, self._model = gateway, model

    def run(self) -> None:
        """Call until it is enough."""
        threads = [threading.Thread(target=self._call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _call(self, number: int) -> None:
        count = 0
        while not self.stopping.is_set():
            count += 1
            x = np.full((1, 4), number * 10_000 + count, np.float32)
            try:
                response = self._gateway.stub.ModelInfer(request(self._model, {"x": x}), timeout=60)
            except grpc.RpcError as error:
                self.errors.append(f"{error.code()} {error.details()}")
                continue
            answer = decode_infer_response(response)
            assert np.array_equal(answer["y"], x * 2)
            self.nodes.append(answer["node"][0, 0].decode())


def available(gateway: Gateway, model: str) -> float:
    """How many of a model's instances are there."""
    return of_model(scrape(gateway), "tensorgate_instances_available", model)[""]


def test_a_lost_node_loses_no_request(
    nodes: Any, ray_serving: Any, victim: str, repository: RepositoryBuilder, written: Path
) -> None:
    """When a node ends under load, every request is answered, and soon there are as many instances as before."""
    repository.add("swift", {"model.py": SLEEPER}, sleeper(0.02, written, "instance_group { count: 2 }"))
    with ray_serving(repository.root) as gateway:
        callers = Callers(gateway, "swift")
        callers.start()
        eventually(lambda: len(set(callers.nodes)) == 2)
        nodes.kill(victim)
        eventually(lambda: available(gateway, "swift") == 1)
        assert ready(gateway, "swift")
        eventually(lambda: available(gateway, "swift") == 2)
        callers.stopping.set()
        callers.join()
        assert not callers.errors
        assert len(callers.nodes) > 100
        assert victim not in callers.nodes[-8:]
        gateway.server.wait_for_log(r"swift/1#\d is back after .* s, on ")


def test_what_must_not_be_repeated_is_not(
    nodes: Any, ray_serving: Any, victim: str, repository: RepositoryBuilder, written: Path
) -> None:
    """Of a model that is not deterministic, requests that a node takes along are UNAVAILABLE, and none runs twice."""
    once = 'backend: "python" max_batch_size: 4 instance_group { count: 2 }' + parameter("deterministic", "false")
    repository.add("once", {"model.py": SLEEPER}, sleeper(1, written, once))
    with ray_serving(repository.root) as gateway:
        messages = [request("once", {"x": ONES * number}) for number in range(16)]
        calls = [gateway.stub.ModelInfer.future(message, timeout=60) for message in messages]
        eventually(lambda: len(written.read_text().splitlines()) == 4)  # the second batch of each node
        nodes.kill(victim)
        lost = [number for number, call in enumerate(calls) if call.exception()]
        assert {calls[number].code() for number in lost} == {grpc.StatusCode.UNAVAILABLE}
        assert "it may or may not have been executed" in calls[lost[0]].details()
        assert len(lost) == 4
        assert sorted(map(int, written.read_text().split())) == list(range(16))


def test_a_model_without_instances_is_waited_for(
    nodes: Any, ray_serving: Any, victim: str, repository: RepositoryBuilder, written: Path
) -> None:
    """A model whose only node has ended is not ready; its callers wait, to their deadlines or for another node."""
    rare = "instance_group { kind: KIND_MODEL }" + parameter("ray_num_gpus", 1)
    repository.add("rare", {"model.py": SLEEPER}, sleeper(0, written, rare))
    with ray_serving(repository.root) as gateway:
        assert ready(gateway, "rare")
        nodes.kill(victim)
        eventually(lambda: not ready(gateway, "rare"))
        message = request("rare", {"x": ONES})
        hurried, patient = (gateway.stub.ModelInfer.future(message, timeout=seconds) for seconds in (0.5, 60))
        assert hurried.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        node = nodes.add(2, 1)
        assert decode_infer_response(patient.result())["node"][0, 0].decode() == node
        assert ready(gateway, "rare")
    nodes.kill(node)
