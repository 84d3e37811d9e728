"""MLflow's server as a tracing backend, a collector in front of it, and what the backend tells of the traces it got."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1 import trace_pb2

from support.calls import eventually
from support.otlp import Span
from support.server import free_port

_ENVIRONMENT = Path(__file__).parents[2] / ".venv-tracing"
_EXPERIMENT = "0"  # there from the start
_QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class TracingBackend:
    """A running MLflow.

    Args:
        address: host and port.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def spans(self) -> list[Span]:
        """All that it has, but for their kinds and resources, which it does not tell."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": _EXPERIMENT}}
        found = self._ask("search", json.dumps({"locations": [place], "max_results": 500}).encode())
        if not found:
            return []
        wanted = "&".join(f"trace_ids={trace['trace_id']}" for trace in found["traces"])
        traces = self._ask(f"batchGet?{wanted}")["traces"]
        return [Span(ParseDict(span, trace_pb2.Span()), {}) for trace in traces for span in trace["spans"]]

    def page(self, span: Span) -> str:
        """Where people look at the trace of a span."""
        return f"http://{self.address}/#/experiments/{_EXPERIMENT}/traces/tr-{span.trace}"

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            self._ask("search", b'{"locations": []}')
        except OSError:
            return False
        return True

    def _ask(self, what: str, body: bytes | None = None) -> Any:
        url = f"http://{self.address}/api/3.0/mlflow/traces/{what}"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # our own
            return json.load(answer)


@contextmanager
def mlflow(folder: Path) -> Iterator[TracingBackend]:
    """A server that keeps what it gets in a folder."""
    backend = TracingBackend(f"127.0.0.1:{free_port()}")
    host, _, port = backend.address.partition(":")
    command = [_tool("bin/mlflow"), "server", "--host", host, "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", folder / "artifacts"]
    with _running(command, folder / "mlflow.log", backend.is_up, _QUIET):
        yield backend


@contextmanager
def collector(backend: TracingBackend, folder: Path) -> Iterator[str]:
    """A collector, rotel, that takes spans over gRPC and hands them to the backend over HTTP; its address."""
    address, unused = (f"127.0.0.1:{free_port()}" for _ in range(2))
    receiver = ["--otlp-grpc-endpoint", address, "--otlp-http-endpoint", unused]
    exporter = ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-request-timeout", "60s"]
    exporter += ["--otlp-exporter-endpoint", f"http://{backend.address}"]
    exporter += ["--otlp-exporter-custom-headers", f"x-mlflow-experiment-id={_EXPERIMENT}"]
    binary = _tool("lib/python*/site-packages/rotel/rotel-agent")
    with _running([binary, "start", *receiver, *exporter], folder / "rotel.log", lambda: _accepts(address)):
        yield address


def _tool(pattern: str) -> Path:
    found = next(_ENVIRONMENT.glob(pattern), None)
    return found or pytest.skip(f"no {pattern} in {_ENVIRONMENT.name}: `make test-tracing` installs it")


@contextmanager
def _running(
    command: Sequence[str | Path], log: Path, ready: Callable[[], bool], environment: Mapping[str, str] = {}
) -> Iterator[None]:
    """A process that is ready, killed at the end with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        eventually(lambda: ready() or process.poll() is not None, timeout=120)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
