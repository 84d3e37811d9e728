"""A gateway, a real collector and a real tracing backend, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.calls import eventually
from support.mlflow import TracingBackend, collector, mlflow
from support.server import serving
from support.traced_calls import Traces, call_all, models


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracingBackend]:
    """MLflow."""
    with mlflow(tmp_path_factory.mktemp("mlflow")) as backend:
        yield backend


@pytest.fixture(scope="session")
def traces(backend: TracingBackend, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """What is in the backend once a gateway has answered its calls and ended."""
    folder = tmp_path_factory.mktemp("gateway")
    repository = models(folder)
    with collector(backend, folder) as address:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}"}
        with serving(repository.root, environment=environment) as gateway:
            call_all(gateway)
            gateway.server.signal()
            assert gateway.server.wait() == 0
        return eventually(lambda: traces if (traces := Traces(backend.spans())).complete else None)
