"""A real Prometheus: it accepts the page, scrapes the server and answers what dashboards ask."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.calls import ECHO, eventually, infer
from support.concurrent import parameter
from support.metrics import fetch, histogram, metrics_url, scrape
from support.models import RepositoryBuilder
from support.prometheus import ask, needs_prometheus, prometheus, target
from support.server import Gateway, serving

from gateway.demo.stages import quantile

pytestmark = needs_prometheus

BUCKETS = 'tensorgate_request_duration_seconds_bucket{model="slow"}'


def test_promtool_accepts_the_page(repository: RepositoryBuilder) -> None:
    """Prometheus' own checker can read the page, and finds fault with nothing but Triton's names."""
    repository.add("echo", config=ECHO)
    with serving(repository.root) as gateway:
        infer(gateway, "echo")
        page, _ = fetch(metrics_url(gateway.server))
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    faults = (check.stdout + check.stderr).splitlines()
    assert check.returncode == 3, faults  # style; what cannot be read is 1
    assert [fault for fault in faults if not fault.startswith("nv_")] == []


def scraping(gateway: Gateway) -> dict[str, Any]:
    """A configuration to scrape it all the time."""
    job = {"job_name": "tensorgate", "static_configs": [{"targets": [target(metrics_url(gateway.server))]}]}
    return {"global": {"scrape_interval": "100ms"}, "scrape_configs": [job]}


def test_prometheus_scrapes_and_answers(repository: RepositoryBuilder, tmp_path: Path) -> None:
    """A dashboard gets quantiles, counts by Triton's names, and rates of a running server."""
    repository.add("slow", config=ECHO + parameter("delay_ms", 30))
    with serving(repository.root) as gateway, prometheus(scraping(gateway), tmp_path) as address:
        for _ in range(5):
            infer(gateway, "slow")
        eventually(lambda: ask(address, 'nv_inference_request_success{model="slow",version="1"}') == 5)
        buckets, *_ = histogram(scrape(gateway), "tensorgate_request_duration_seconds", "slow", "1")
        for share in (0.5, 0.95, 0.99):
            answer = ask(address, f"histogram_quantile({share}, sum by (le) ({BUCKETS}))")
            assert answer == pytest.approx(quantile(share, buckets))  # the demo's table, too, is right
            assert answer > 0.025
        infer(gateway, "slow")
        busy = f"histogram_quantile(0.99, sum by (le) (rate({BUCKETS}[1m])))"
        assert eventually(lambda: ask(address, busy)) > 0.025
        assert ask(address, "up") == 1
