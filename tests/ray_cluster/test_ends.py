"""How a gateway with Ray begins and ends: what there is no cluster for, and what is left of it in the cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.calls import ONES, eventually, first_output, infer, request
from support.models import RepositoryBuilder
from support.server import launch, serving

SLOW = """
import time

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        time.sleep(1)
        return {"y": inputs["x"] * 2}
"""


@pytest.fixture
def slow(repository: RepositoryBuilder) -> Path:
    """A repository of a model that takes a second."""
    repository.add("slow", {"model.py": SLOW}, "instance_group { count: 2 }")
    return repository.root


@pytest.fixture(scope="module")
def head(nodes: Any) -> str:
    """The cluster's only node."""
    return str(nodes.add(2))


def test_requests_in_flight_finish(nodes: Any, head: str, ray_serving: Any, slow: Path) -> None:
    """On SIGTERM what is under way and in the queue is answered, the actors end, and so does the server, with 0."""
    with ray_serving(slow) as gateway:
        calls = [gateway.stub.ModelInfer.future(request("slow", {"x": ONES * n}), timeout=60) for n in range(6)]
        eventually(lambda: nodes.free()[0] == 0)
        infer(gateway, "slow", ONES, "x")
        gateway.server.signal()
        assert [first_output(call.result())[0, 0] for call in calls] == [n * 2 for n in range(6)]
        assert gateway.server.wait() == 0
        assert "ray" not in gateway.server.log.replace("engine ray", "").replace("--ray", "").lower()
    eventually(lambda: nodes.free()[0] == 2)


def test_a_cluster_is_found_by_its_usual_variable(nodes: Any, head: str, slow: Path) -> None:
    """RAY_ADDRESS says where the cluster is, as for any program that uses Ray."""
    environment = {**nodes.environment, "RAY_ADDRESS": nodes.address}
    with serving(slow, "--engine", "ray", environment=environment) as gateway:
        assert nodes.free()[0] == 0
        assert np.array_equal(infer(gateway, "slow", ONES, "x"), ONES * 2)


def test_a_server_that_is_killed_leaves_no_actors(nodes: Any, head: str, ray_serving: Any, slow: Path) -> None:
    """Actors end with their gateway, also where that is killed."""
    with ray_serving(slow) as gateway:
        assert nodes.free()[0] == 0
        gateway.server.signal(signal.SIGKILL)
        eventually(lambda: nodes.free()[0] == 2)


def test_a_cluster_for_this_machine_alone(nodes: Any, ray_serving: Any, slow: Path) -> None:
    """`--ray-address local` needs no cluster, and what it starts ends with the server."""
    flags = ("--engine", "ray", "--ray-address", "local")
    with serving(slow, *flags, environment=nodes.environment) as gateway:
        assert np.array_equal(infer(gateway, "slow", ONES, "x"), ONES * 2)
        address = gateway.server.wait_for_log(r"engine ray: 1 node, .* at (\S+)")[1]
        gateway.server.signal()
        assert gateway.server.wait() == 0
    with launch("--model-repository", slow, "--engine", "ray", "--ray-address", address) as server:
        assert server.wait() == 1
        assert f"tensorgate: no Ray cluster at {address}: " in server.log


def test_a_cluster_wants_its_token(nodes: Any, head: str, slow: Path) -> None:
    """A gateway without the cluster's token is told so, and what to set."""
    flags = ("--model-repository", slow, "--engine", "ray", "--ray-address", nodes.address)
    with launch(*flags, environment={**nodes.environment, "RAY_AUTH_TOKEN": "b" * 64}) as server:
        assert server.wait() == 1
        told = f"tensorgate: cannot join the Ray cluster at {nodes.address}: .*token is missing or incorrect.*"
        server.wait_for_log(f"{told}\ntensorgate: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ")


NO_CLUSTER = {
    "somewhere:6379x": "tensorgate: no Ray cluster at somewhere:6379x: expected HOST:PORT\n",
    "ray://127.0.0.1:10001": "tensorgate: --ray-address: ray://127.0.0.1:10001: expected HOST:PORT",
    "nonsense": "tensorgate: cannot join the Ray cluster at nonsense: Invalid address format: nonsense",
    "auto": "tensorgate: no Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused\ntensorgate: start one with ",
}


@pytest.mark.parametrize("address", NO_CLUSTER)
def test_without_a_cluster_the_server_says_how_to_get_one(nodes: Any, slow: Path, address: str) -> None:
    """Where there is no cluster the server does not start, and says in plain words what is missing."""
    flags = ("--model-repository", slow, "--engine", "ray", "--ray-address", address)
    with launch(*flags, environment={**nodes.environment, "RAY_ADDRESS": "127.0.0.1:1"}) as server:
        assert server.wait() == 1
        assert server.log.startswith(NO_CLUSTER[address])
        assert "Traceback" not in server.log
