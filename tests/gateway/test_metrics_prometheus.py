"""A real Prometheus: it accepts the page, scrapes the server and answers what dashboards ask."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.calls import ECHO, eventually, infer
from support.concurrent import parameter
from support.metrics import fetch, histogram, metrics_url, scrape
from support.models import RepositoryBuilder
from support.server import serving

from gateway.demo.stages import quantile

pytestmark = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="prometheus and promtool are not on PATH: apt-get install --no-install-recommends prometheus",
)

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


def test_prometheus_scrapes_and_answers(repository: RepositoryBuilder, tmp_path: Path) -> None:
    """A dashboard gets quantiles, counts by Triton's names, and rates of a running server."""
    repository.add("slow", config=ECHO + parameter("delay_ms", 30))
    with serving(repository.root) as gateway, prometheus(metrics_url(gateway.server), tmp_path) as address:
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


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes `target` all the time; its address."""
    host = urllib.parse.urlsplit(target).netloc
    config = folder / "prometheus.yml"
    job = {"job_name": "tensorgate", "static_configs": [{"targets": [host]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "100ms"}, "scrape_configs": [job]}))  # JSON is YAML
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            log = ""
            while "ready to receive web requests" not in log:
                log += process.stderr.readline()
                assert process.poll() is None, log
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would hold it up
            yield re.findall(r'"Listening on" address=(\S+)', log)[0]
        finally:
            process.kill()


def ask(address: str, query: str) -> float | None:
    """The only value that a query has now; None if there is none yet."""
    page, _ = fetch(f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    result = json.loads(page)["data"]["result"]
    if not result:
        return None
    ((_, value),) = [series["value"] for series in result]
    return None if value == "NaN" else float(value)
