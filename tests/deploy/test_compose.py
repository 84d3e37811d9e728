"""What compose.yaml says of itself, as far as it can be seen without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
PINNED = re.compile(r".+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?")


@each_service
def test_services_are_hardened(service: dict[str, Any]) -> None:
    """No service writes to its image, has privileges, takes all there is, or listens beyond this machine."""
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if "build" not in service:  # whose user and version are the Dockerfile's
        assert int(service["user"].partition(":")[0]) > 0
        assert PINNED.fullmatch(service["image"])


@each_service
def test_files_are_there(service: dict[str, Any]) -> None:
    """Everything that is mounted from the repository is in it, and cannot be written to."""
    for source, _, *mode in (volume.split(":") for volume in service.get("volumes", []) if volume.startswith("./")):
        assert (DEPLOY / source).exists(), source
        assert mode == ["ro"]


def test_the_gateway_may_end_in_peace() -> None:
    """Docker waits longer for the gateway than the gateway for its requests, and all its settings exist."""
    gateway = SERVICES["gateway"]
    environment = {name: value for name, value in gateway["environment"].items() if name.startswith("TENSORGATE_")}
    assert {name.removeprefix("TENSORGATE_").lower() for name in environment} <= set(Settings.model_fields)
    grace = float(environment["TENSORGATE_SHUTDOWN_GRACE_S"])
    assert float(gateway["stop_grace_period"].removesuffix("s")) >= grace + 5


def test_spans_find_their_way() -> None:
    """From the gateway to the collector to Jaeger to Grafana, each is addressed by its name and port."""
    collector = yaml.safe_load((DEPLOY / "otel-collector" / "config.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert SERVICES["gateway"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://collector:{port}"
    assert collector["exporters"]["otlp_grpc"]["endpoint"] == "jaeger:4317"  # Jaeger's, with no configuration
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
    hosts = {source["url"].split("/")[2].partition(":")[0] for source in sources}
    assert {"collector", "jaeger", *hosts} <= set(SERVICES)
