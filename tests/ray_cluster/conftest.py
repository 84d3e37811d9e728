"""Ray clusters of several nodes on this machine, and gateways that are part of one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import server
from support.gpus import Machine

_NODES = Path(__file__).with_name("nodes.py")

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    # As deploy/ray/README.md has it.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "2",
}


class Nodes:
    """A cluster's nodes."""

    def __init__(self, process: subprocess.Popen[str], environment: Mapping[str, str]) -> None:
        self._process = process
        self.environment = environment
        self.address = ""

    def add(self, cpus: int, gpus: int = 0) -> str:
        """Start a node; how logs and traces call it."""
        (node, self.address) = self._tell(f"add {cpus} {gpus}")
        return str(node)

    def kill(self, node: str) -> None:
        """End a node the hard way."""
        self._tell(f"kill {node}")

    def free(self) -> tuple[float, float]:
        """Processors and GPUs that nobody has."""
        amounts = self._tell("free")
        return amounts.get("CPU", 0), amounts.get("GPU", 0)

    def _tell(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the cluster has ended"
        return json.loads(answer)


@pytest.fixture(scope="session")
def ray_python() -> Path:
    """A Python that has Ray, and tensorgate."""
    return Path(os.environ["TENSORGATE_RAY_PYTHON"])


@pytest.fixture(scope="module")
def nodes(ray_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster without nodes yet, which knows the backend `where`; its gateways are to have its environment."""
    machine = Machine(tmp_path_factory.mktemp("machine"), [])
    environment = {**machine.environment, **_ENVIRONMENT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "COMMAND", [ray_python, "-m", "gateway"])
        process = subprocess.Popen(
            [ray_python, _NODES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        with process:
            yield Nodes(process, environment)
            process.stdin.close()
            process.wait(60)


Serving = Callable[..., Any]


@pytest.fixture
def ray_serving(nodes: Nodes) -> Serving:
    """`support.server.serving` with the cluster's engine."""

    @contextmanager
    def serving(repository: Path, *flags: str, **environment: str) -> Iterator[server.Gateway]:
        engine = ("--engine", "ray", "--ray-address", nodes.address)
        with server.serving(repository, *engine, *flags, environment={**nodes.environment, **environment}) as gateway:
            yield gateway

    return serving
