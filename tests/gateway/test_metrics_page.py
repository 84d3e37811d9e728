"""The metrics' page: where it is, in which formats, and what it says of the server and its machine."""

from __future__ import annotations

import platform
import socket
from contextlib import closing
from importlib.metadata import version
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.calls import ECHO, infer
from support.metrics import OPENMETRICS, fetch, metrics_url, of_model, refused, samples, scrape
from support.models import RepositoryBuilder
from support.server import serving

from gateway.machine import Machine
from gateway.metrics import MetricsPage, ModelReading, Reading
from gateway.request import Stages
from gateway.stats import ModelStatistics
from gateway.tracing import Ids


def test_both_formats_say_the_same_by_the_same_names(repository: RepositoryBuilder) -> None:
    """A dashboard works whichever format its Prometheus asks for: both have every series by the same name."""
    repository.add("echo", config=ECHO)
    with serving(repository.root) as gateway:
        infer(gateway, "echo")
        url = metrics_url(gateway.server)
        page, headers = fetch(url, OPENMETRICS)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        families = list(text_string_to_metric_families(page))  # as strict as the standard
        plain, headers = fetch(url)
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {(s.name, *(s.labels[label] for label in sorted(s.labels))) for f in families for s in f.samples}
        assert names == samples(plain).keys()
        assert "# TYPE nv_inference_request_success counter\n" in plain
        assert "# TYPE nv_inference_request_success unknown\n" in page  # to OpenMetrics, counters end in _total


def test_the_server_and_its_machine_show(repository: RepositoryBuilder) -> None:
    """An on-call engineer sees which build runs, on how busy a machine, with how much memory."""
    with serving(repository.root, "--transport", "grpcio") as gateway:
        scraped = scrape(gateway)
        assert ("tensorgate_build_info", platform.python_version(), "grpcio", version("tensorgate")) in scraped
        assert scraped[("process_resident_memory_bytes",)] > 10_000_000
        assert scraped[("process_cpu_seconds_total",)] > 0
        assert 0 <= scraped[("nv_cpu_utilization",)] <= 1
        assert 0 < scraped[("nv_cpu_memory_used_bytes",)] < scraped[("nv_cpu_memory_total_bytes",)]


def test_names_of_models_may_be_anything(repository: RepositoryBuilder) -> None:
    """A model's name with quotes, spaces or other scripts comes out as it is."""
    name = 'größe "数" 1'
    repository.add(name, config=ECHO)
    with serving(repository.root) as gateway:
        infer(gateway, name)
        assert scrape(gateway)[("nv_inference_request_success", name, "1")] == 1


def test_other_paths_and_methods_are_told_apart(repository: RepositoryBuilder) -> None:
    """Whoever mistypes the address learns where the metrics are."""
    with serving(repository.root) as gateway:
        url = metrics_url(gateway.server)
        assert refused(url.replace("/metrics", "/")) == (404, "the metrics are at /metrics\n")
        assert refused(url, method="POST") == (405, "use GET\n")
        assert fetch(f"{url}?name=value")[0].startswith("# HELP nv_")


GET = b"GET /metrics HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01\x02", GET, b"GET\r\n\r\n", GET + b"Accept: \xff\r\n : \0\r\n\r\n", b"x" * 100_000]
)
def test_strangers_do_no_harm(repository: RepositoryBuilder, sent: bytes) -> None:
    """What is no HTTP, or stops in the middle of it, keeps neither scrapes nor requests from being answered."""
    repository.add("echo", config=ECHO)
    with serving(repository.root) as gateway:
        place = urlsplit(metrics_url(gateway.server))
        with closing(socket.create_connection((place.hostname, place.port))) as stranger:
            stranger.sendall(sent)
            assert infer(gateway, "echo").shape == (1, 4)
            assert of_model(scrape(gateway), "nv_inference_request_success", "echo") == {"": 1}
        assert gateway.server.process.poll() is None
        assert "Traceback" not in gateway.server.log


def test_a_slow_request_leads_to_its_trace() -> None:
    """In OpenMetrics, each bucket of the requests' durations has the trace of its latest request as its exemplar."""
    stats = ModelStatistics()
    for trace, ms in ((0xAA, 3), (0xBB, 4), (0, 4), (0xCC, 700)):
        stats.succeeded(Stages(received=10, encode=10 + ms * 1_000_000, span=Ids(trace, 1) if trace else None))
    reading = Reading([ModelReading("m", "1", stats.copy(), 0)], 0, 0, 0, 0, 0, 0, 0)
    page, _ = MetricsPage({}).write(reading, OPENMETRICS)
    families = text_string_to_metric_families(page.decode())
    found = {s.labels["le"]: s.exemplar for f in families for s in f.samples if s.exemplar}
    assert {le: (e.labels, e.value) for le, e in found.items()} == {
        "0.005": ({"trace_id": f"{0xBB:032x}"}, 0.004),
        "1.0": ({"trace_id": f"{0xCC:032x}"}, 0.7),
    }
    assert all(float(exemplar.timestamp) > 1_700_000_000 for exemplar in found.values())
    assert b"trace_id" not in MetricsPage({}).write(reading, "")[0]


def test_the_machine_is_as_busy_as_proc_says(tmp_path) -> None:
    """Utilization is the share of processor time spent working since the last scrape; waiting for a disk is no work."""
    stat, meminfo = tmp_path / "stat", tmp_path / "meminfo"
    stat.write_text("cpu  100 0 0 300 100 0 0 0 0 0\ncpu0 1 1 1 1\n")
    meminfo.write_text("MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  400 kB\nHugePages_Total: 0\n")
    machine = Machine(tmp_path)
    stat.write_text("cpu  150 20 10 360 130 5 10 5 0 0\n")  # 100 of 190 ticks are work
    assert machine.utilization() == pytest.approx(100 / 190)
    assert machine.utilization() == pytest.approx(100 / 190)  # at once again: the same
    assert machine.memory() == (1000 * 1024, 600 * 1024)


def test_a_machine_without_proc_is_no_error(tmp_path) -> None:
    """Where there is no /proc, the numbers are zero."""
    machine = Machine(tmp_path)
    assert (machine.utilization(), machine.memory()) == (0, (0, 0))
