"""The dashboard and the alerts on a real Prometheus, which scrapes a gateway that has all kinds of trouble."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.calls import ECHO, ONES, Gate, eventually, infer, request
from support.concurrent import POISON, moody, parameter
from support.gpus import Machine
from support.metrics import metrics_url
from support.models import RepositoryBuilder
from support.prometheus import api, needs_prometheus, prometheus, target, values
from support.server import Gateway, free_port, serving

from tensorgate_client.wire import inference_pb2 as pb

pytestmark = needs_prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = DEPLOY / "helm" / "tensorgate" / "files"
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(query["expr"], id=f"{panel['id']}-{panel['title']}-{query['refId']}")
    for panel in PANELS
    for query in panel["targets"]
]
GPU = {"uuid": "GPU-a", "memory": [80_000, 20_000], "percent": 25, "mw": 301_500, "limit_mw": 700_000, "mj": 5_000}
CACHED = ECHO + "response_cache { enable: true }\n"
ONE_WAITS = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus configured as compose's, over a gateway under load."""
    folder = tmp_path_factory.mktemp("dashboard")
    repository = RepositoryBuilder(folder / "models")
    gate = Gate(folder / "gate")
    gate.open()
    repository.add("moody", moody(gate), gate.config)
    repository.add("slow", config=ECHO + ONE_WAITS + parameter("delay_ms", 50))
    repository.add("cached", config=CACHED)
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    environment = {**Machine(folder / "machine", [GPU]).environment, **nowhere}
    small = ("--cache-size-mb", "1", "--trace-rate", "1")
    with (
        serving(repository.root, *small, environment=environment) as gateway,
        load(gateway),
        prometheus(configuration(gateway), folder, "--enable-feature=exemplar-storage") as running,
    ):
        yield running


def configuration(gateway: Gateway) -> dict[str, Any]:
    """That of compose, but for where the gateway and the alerts are, and for its leisure."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "100ms")
    config["rule_files"] = [str(FILES / file) for file in config["rule_files"]]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target(metrics_url(gateway.server))]}]
    return config


@contextmanager
def load(gateway: Gateway) -> Iterator[None]:
    """Requests that are answered, wait, are refused, fail, hit the cache and fill it, and an open stream."""
    over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request("moody", {"x": np.float32([1])})
        over.wait()

    stream = gateway.stub.ModelStreamInfer(requests())
    with ThreadPoolExecutor() as caller:
        calling = caller.submit(_call, gateway, over)
        try:
            yield
        finally:
            over.set()
            stream.cancel()
    calling.result()


def _call(gateway: Gateway, over: threading.Event) -> None:
    for number in count():
        if over.is_set():
            return
        slow = [gateway.stub.ModelInfer.future(request("slow", {"INPUT0": ONES})) for _ in range(4)]
        poisonous = gateway.stub.ModelInfer.future(request("moody", {"x": np.float32([POISON])}))
        infer(gateway, "moody", np.float32([1]), "x")
        infer(gateway, "cached")
        infer(gateway, "cached", np.full((1, 100_000), number, np.float32))
        for call in (*slow, poisonous):
            call.code()


def filled(expression: str) -> str:
    """A query as Grafana sends it."""
    filled = expression.replace("$model", ".*").replace("$__rate_interval", "3s")
    assert "$" not in filled
    return filled


@pytest.mark.parametrize("expression", QUERIES)
def test_panels_show_what_happens(expression: str, address: str) -> None:
    """Each query of each panel has an answer of numbers, and one above nought, since what it shows does happen."""

    def shown() -> bool:
        found = values(address, filled(expression))
        return bool(found) and all(map(isfinite, found)) and max(found) > 0

    eventually(shown)


def test_latencies_lead_to_traces(address: str) -> None:
    """The panel of latencies has exemplars, whose label is the one that Grafana makes a link to the trace of."""
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
    by_type = {source["type"]: source for source in sources}
    (link,) = by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["datasourceUid"] == by_type["jaeger"]["uid"]
    (panel,) = (panel for panel in PANELS if any(query.get("exemplar") for query in panel["targets"]))
    for query in panel["targets"]:
        series = api(address, "query_exemplars", query=filled(query["expr"]), start="0", end="9999999999")
        assert all(len(exemplar["labels"][link["name"]]) == 32 for one in series for exemplar in one["exemplars"])
        assert series


def test_models_can_be_chosen(address: str) -> None:
    """The dashboard's list of models is filled, from the metric that its query names."""
    (variable,) = (v for v in DASHBOARD["templating"]["list"] if v["type"] == "query")
    metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    found = eventually(lambda: api(address, "query", query=metric)["result"])
    assert {series["metric"][label] for series in found} == {"moody", "slow", "cached"}


def test_panels_have_their_places() -> None:
    """No panel covers another or the edge, and each has an id of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alerts_see_the_trouble(address: str) -> None:
    """All alerts can be evaluated on what a gateway tells, and those for what goes wrong here are on their way."""

    def alerts() -> dict[str, str]:
        (group,) = api(address, "rules")["groups"]
        assert all(rule["health"] != "err" for rule in group["rules"]), group
        return {rule["name"]: rule["state"] for rule in group["rules"] if rule["health"] == "ok"}

    trouble = {"TensorgateModelFails", "TensorgateRefuses", "TensorgateSpansDropped"}
    eventually(lambda: {name for name, state in alerts().items() if state == "pending"} == trouble)
    assert set(alerts().values()) == {"pending", "inactive"}
