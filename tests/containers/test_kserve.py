"""The runtime for KServe and the services that use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.manifests import RESTRICTED, Manifest, check, check_probes, seconds_to_end
from support.tools import Tool

from gateway.settings import Settings

KSERVE = Path(__file__).parents[2] / "deploy" / "kserve"
RUNTIME: Manifest = yaml.safe_load((KSERVE / "clusterservingruntime.yaml").read_text())
SERVICES: dict[str, Manifest] = {f.stem: yaml.safe_load(f.read_text()) for f in KSERVE.glob("inferenceservice*.yaml")}
GRACE_S = Settings.model_fields["shutdown_grace_s"].default


def test_kserve_takes_the_objects(tool: Callable[[str], Tool], tmp_path: Path) -> None:
    """Nothing has a field that KServe does not know, and the runtime's pods none that Kubernetes does not know."""
    pod = {key: RUNTIME["spec"][key] for key in ("containers", "volumes")}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    check([RUNTIME, *SERVICES.values(), made], tool, tmp_path)


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_services_are_served_by_the_runtime(service: Manifest) -> None:
    """Each service gets the runtime without naming it, and gives its pods the time to end."""
    predictor = service["spec"]["predictor"]
    (offered,) = (f for f in RUNTIME["spec"]["supportedModelFormats"] if f.get("autoSelect"))
    assert {key: offered[key] for key in ("name", "version")} == predictor["model"]["modelFormat"]
    assert predictor["model"]["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    (container,) = RUNTIME["spec"]["containers"]
    assert predictor["terminationGracePeriodSeconds"] >= seconds_to_end(container) + GRACE_S + 5


def test_the_runtime_serves_what_kserve_mounts() -> None:
    """The gateway serves /mnt/models, where KServe puts models, on the only port, restricted, probed by gRPC."""
    (container,) = RUNTIME["spec"]["containers"]
    (port,) = container["ports"]
    assert port["name"] == "h2c"
    assert container["args"] == ["serve", "--model-repository=/mnt/models", f"--port={port['containerPort']}"]
    check_probes(container)
    assert RESTRICTED.items() <= container["securityContext"].items()
