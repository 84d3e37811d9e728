"""Kubernetes objects: what they are checked with, and what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.tools import Tool

Manifest = dict[str, Any]

CUSTOM = ("ClusterServingRuntime", "InferenceService", "PrometheusRule", "ScaledObject", "ServiceMonitor")
"""Kinds that Kubernetes itself does not know."""

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
"""What a container's security says at least."""


def check(manifests: Sequence[Manifest], tool: Callable[[str], Tool], folder: Path) -> None:
    """Fail on objects that an API server would refuse or whose fields it would drop."""
    script = str(Path(__file__).parents[1] / "containers" / "custom_resources.py")
    own = [manifest for manifest in manifests if manifest["kind"] in CUSTOM]
    known = tool("python")(script, given=json.dumps(own))
    assert known.returncode == 0, known.stdout + known.stderr
    for number, manifest in enumerate(manifests):
        if manifest["kind"] not in CUSTOM:
            file = folder / f"{number}.json"
            file.write_text(json.dumps(manifest))
            valid = tool("kubernetes-validate")("--strict", file)
            assert valid.returncode == 0, f"{manifest}\n{valid.stdout}{valid.stderr}"


def check_probes(container: Manifest) -> None:
    """Fail unless the kubelet asks for health by gRPC, on a port that the container has."""
    ports = {port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] in ports


def seconds_to_end(container: Manifest) -> int:
    """How long a container serves on after it has been told to end."""
    seconds: int = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return seconds
