"""The Helm chart: what helm makes of it, as Kubernetes, the gateway and Prometheus see that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.calls import ECHO, eventually, infer
from support.concurrent import parameter, start
from support.manifests import RESTRICTED, Manifest, check, check_probes, seconds_to_end
from support.metrics import metrics_url
from support.models import RepositoryBuilder
from support.prometheus import ask, needs_prometheus, prometheus, target
from support.server import launch, serving
from support.tools import Tool

from gateway.settings import Settings

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "tensorgate"
VOLUME = {"modelRepository": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}}}
HTTPS = {"enabled": True, "egress": [{"ports": [{"port": 443}]}]}
EVERYTHING = {
    "modelRepository": {"uri": "s3://bucket/models", "credentialsSecret": "bucket"},
    "networkPolicy": HTTPS,
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {"cache_size_mb": 512, "trace_rate": 0.01, "access_log": True, "model_control": "poll"},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}],
    "preStopSeconds": 7,
    "shutdownGraceSeconds": 120,
    "readinessModel": "digits",
    "gpus": 1,
    "runtimeClassName": "nvidia",
    "autoscaling": {"enabled": True},
    "metrics": {"serviceMonitor": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}
LITTLE = {
    "modelRepository": {"volume": {"hostPath": {"path": "/srv/models"}}},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "service": {"headless": False},
}
sets_of_values = pytest.mark.parametrize("values", [VOLUME, EVERYTHING, LITTLE], ids=["volume", "everything", "little"])


class Chart:
    """Renders the chart."""

    def __init__(self, helm: Tool, folder: Path) -> None:
        self._helm = helm
        self._folder = folder

    def run(self, *command: str | Path, values: Manifest) -> Any:
        """A command of helm's with the values in a file."""
        file = self._folder / "values.yaml"
        file.write_text(json.dumps(values))  # JSON is YAML
        return self._helm(*command, CHART, "--values", file)

    def __call__(self, values: Manifest) -> list[Manifest]:
        """All objects."""
        rendered = self.run("template", "prod", "--namespace", "ml", values=values)
        assert rendered.returncode == 0, rendered.stderr
        return [document for document in yaml.safe_load_all(rendered.stdout) if document]

    def one(self, kind: str, values: Manifest) -> Manifest:
        """The only object of a kind; of pods, templates are none."""
        (found,) = (document for document in self(values) if document["kind"] == kind)
        return found

    def refusal(self, values: Manifest) -> str:
        """What helm says of values that it does not take."""
        answer = self.run("template", "prod", values=values)
        assert answer.returncode != 0
        return str(answer.stderr)


@pytest.fixture
def chart(tool: Callable[[str], Tool], tmp_path: Path) -> Chart:
    """The chart, in release `prod` of namespace `ml`."""
    return Chart(tool("helm"), tmp_path)


@sets_of_values
def test_helm_finds_no_fault(chart: Chart, values: Manifest) -> None:
    """`helm lint --strict` passes."""
    lint = chart.run("lint", "--strict", values=values)
    assert lint.returncode == 0, lint.stdout + lint.stderr


@sets_of_values
def test_kubernetes_takes_the_objects(
    chart: Chart, values: Manifest, tool: Callable[[str], Tool], tmp_path: Path
) -> None:
    """Each object is valid for its kind, down to fields that nobody knows."""
    check(chart(values), tool, tmp_path)


def test_everything_that_can_be_had(chart: Chart) -> None:
    """All optional objects are there if they are asked for, and none of them by default."""
    needed = {"ConfigMap", "Deployment", "NetworkPolicy", "Pod", "PodDisruptionBudget", "Service", "ServiceAccount"}
    assert {document["kind"] for document in chart(VOLUME)} == needed
    optional = {"PrometheusRule", "ScaledObject", "ServiceMonitor"}
    assert {document["kind"] for document in chart(EVERYTHING)} == needed | optional


@sets_of_values
def test_pods_end_in_peace(chart: Chart, values: Manifest) -> None:
    """Kubernetes kills a pod only after it has served on, and the gateway has had its whole grace."""
    pod = chart.one("Deployment", values)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    grace = int(environment["TENSORGATE_SHUTDOWN_GRACE_S"])
    assert grace == values.get("shutdownGraceSeconds", 30)
    assert seconds_to_end(container) > 0  # others learn meanwhile that it goes
    assert pod["terminationGracePeriodSeconds"] >= seconds_to_end(container) + grace + 5


def test_health_is_asked_for_by_grpc(chart: Chart) -> None:
    """The kubelet probes the port that serves; a model may decide when a pod is called."""
    (container,) = chart.one("Deployment", VOLUME)["spec"]["template"]["spec"]["containers"]
    check_probes(container)
    assert container["readinessProbe"]["grpc"]["service"] == ""
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600
    (container,) = chart.one("Deployment", EVERYTHING)["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["grpc"]["service"] == "digits"


@sets_of_values
def test_pods_are_restricted(chart: Chart, values: Manifest) -> None:
    """All pods keep to the restricted Pod Security Standard, and write to their scratch folder alone."""
    documents = chart(values)
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    (test,) = (document for document in documents if document["kind"] == "Pod")
    for pod in (deployment["spec"]["template"]["spec"], test["spec"]):
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert not pod["enableServiceLinks"]  # a service called tensorgate would set TENSORGATE_PORT
        assert all(container["securityContext"] == RESTRICTED for container in pod["containers"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")} == {"/tmp"}  # noqa: S108


def test_services_find_their_pods(chart: Chart) -> None:
    """Service, budget, policy, spread and monitor choose the pods; their ports are the container's."""
    objects = {document["kind"]: document for document in chart(EVERYTHING)}
    template = objects["Deployment"]["spec"]["template"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(c["labelSelector"]["matchLabels"] for c in template["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= template["metadata"]["labels"].items() for selector in selectors)
    monitor = objects["ServiceMonitor"]["spec"]
    service = objects["Service"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= service.items()
    assert service[monitor["jobLabel"]] == "tensorgate"  # the alerts' and the dashboard's job
    (container,) = template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == ports
    rules = objects["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} < ports
    assert objects["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]  # they are KEDA's to say


def test_what_prometheus_and_grafana_get(chart: Chart) -> None:
    """The rule and the dashboard are those that compose uses, unchanged."""
    documents = chart(EVERYTHING)
    (rule,) = (document for document in documents if document["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    (dashboard,) = (d for d in documents if d["metadata"].get("labels", {}).get("grafana_dashboard"))
    assert dashboard["data"] == {"tensorgate.json": (CHART / "files" / "dashboard.json").read_text()}


def test_gpus_and_the_image(chart: Chart) -> None:
    """A pod gets the GPUs that it asks for, and an image by its digest if that is given."""
    pod = chart.one("Deployment", EVERYTHING)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["runtimeClassName"] == "nvidia"
    assert container["image"] == "tensorgate@sha256:" + "0" * 64
    (container,) = chart.one("Deployment", VOLUME)["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["image"] == "tensorgate:0.1.0"


def test_the_gateway_takes_the_settings(chart: Chart, repository: RepositoryBuilder, tmp_path: Path) -> None:
    """A gateway starts with the file that the pods get, and does as it says; another setting makes other pods."""
    (config,) = (d for d in chart(EVERYTHING) if "tensorgate.toml" in d.get("data", {}))
    file = tmp_path / "tensorgate.toml"
    file.write_text(config["data"]["tensorgate.toml"])
    repository.add("echo", config=ECHO)
    with serving(repository.root, "--config", file, environment={"OTEL_TRACES_EXPORTER": "none"}) as gateway:
        infer(gateway, "echo")
        gateway.server.wait_for_log("rpc=ModelInfer")  # the access log is on

    def checksum(**settings: int) -> str:
        pod = chart.one("Deployment", {**VOLUME, "settings": settings})["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/settings"])

    assert checksum(cache_size_mb=1) != checksum(cache_size_mb=2)


def test_a_setting_that_does_not_exist(chart: Chart, tmp_path: Path) -> None:
    """A setting that is misspelt does not pass unnoticed: the pods' log says which there are."""
    values = {**VOLUME, "settings": {"cash_size_mb": 1}}
    (config,) = (d for d in chart(values) if "tensorgate.toml" in d.get("data", {}))
    file = tmp_path / "tensorgate.toml"
    file.write_text(config["data"]["tensorgate.toml"])
    with launch("--model-repository", tmp_path, "--config", file) as server:
        assert server.wait() == 2
        assert "unknown setting 'cash_size_mb'" in server.log


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "modelRepository: set one of volume and uri"),
        ({"modelRepository": {**VOLUME["modelRepository"], "uri": "s3://a/b"}}, "set one of volume and uri"),
        ({"modelRepository": {"uri": "s3://a/b"}}, "networkPolicy.egress needs a rule"),
        ({"modelRepository": {"uri": "bucket"}}, "'bucket' does not match pattern"),
        ({**VOLUME, "replicsa": 3}, "additional properties 'replicsa' not allowed"),
        ({**VOLUME, "autoscaling": {"enabled": True}}, "autoscaling: metrics.serviceMonitor has to be on"),
        ({**VOLUME, "replicas": "three"}, "got string, want integer"),
        ({**VOLUME, "settings": {"port": 9000}}, "invalid propertyName 'port'"),
        ({**VOLUME, "image": {"digest": "latest"}}, "'latest' does not match pattern"),
    ],
)
def test_mistakes_are_refused(chart: Chart, values: Manifest, why: str) -> None:
    """Helm refuses values that cannot work, and says which."""
    assert why in chart.refusal(values)


def test_settings_that_have_values_of_their_own(chart: Chart) -> None:
    """Settings that the chart decides itself cannot contradict it; all of them exist."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    reserved = schema["properties"]["settings"]["propertyNames"]["not"]["enum"]
    assert set(reserved) < set(Settings.model_fields)


@needs_prometheus
def test_autoscaling_asks_what_can_be_answered(chart: Chart, repository: RepositoryBuilder, tmp_path: Path) -> None:
    """KEDA's queries have one number each, of an idle gateway nought, of a busy one how much waits and how long."""
    scaled = chart.one("ScaledObject", EVERYTHING)
    waiting, wait = (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    repository.add("slow", config=ECHO + parameter("delay_ms", 200) + "max_batch_size: 1\n")
    with serving(repository.root) as gateway:
        labels = {"namespace": "ml", "service": scaled["metadata"]["name"]}
        pods = {"targets": [target(metrics_url(gateway.server))], "labels": labels}
        job = {"job_name": "tensorgate", "static_configs": [pods]}
        config = {"global": {"scrape_interval": "100ms"}, "scrape_configs": [job]}
        with prometheus(config, tmp_path) as address:
            eventually(lambda: ask(address, waiting) == 0)
            assert ask(address, wait) == 0
            calls = [start(gateway, "slow", [1, 1, 1, 1], name="INPUT0") for _ in range(10)]
            eventually(lambda: (ask(address, waiting) or 0) > 0)
            assert all(call.result(60) for call in calls)
            assert 0.2 < eventually(lambda: ask(address, wait)) < 5
