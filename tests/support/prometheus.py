"""A real Prometheus, and what it answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.calls import eventually
from support.metrics import fetch

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="prometheus and promtool are not on PATH: apt-get install --no-install-recommends prometheus",
)


@contextmanager
def prometheus(config: Mapping[str, Any], folder: Path, *options: str) -> Iterator[str]:
    """A Prometheus of this configuration; its address."""
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", *options]
    command += ["--web.listen-address=127.0.0.1:0"]
    log = folder / "prometheus.log"
    with log.open("w") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            eventually(lambda: "ready to receive web requests" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield re.findall(r'"Listening on" address=(\S+)', log.read_text())[0]
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()


def target(metrics_url: str) -> str:
    """Where Prometheus finds a server's metrics."""
    return urllib.parse.urlsplit(metrics_url).netloc


def api(address: str, path: str, **parameters: str) -> Any:
    """What an endpoint of Prometheus' API has to say."""
    page, _ = fetch(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    return json.loads(page)["data"]


def values(address: str, query: str) -> list[float]:
    """The values of all series that a query has now."""
    return [float(series["value"][1]) for series in api(address, "query", query=query)["result"]]


def ask(address: str, query: str) -> float | None:
    """The only value that a query has now; None if there is none yet."""
    found = values(address, query)
    if not found:
        return None
    (value,) = found
    return None if value != value else value  # noqa: PLR0124  # NaN
