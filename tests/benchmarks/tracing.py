"""Part `tracing`: what traces and metrics take of the rate, with a model that does nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.h2load import H2load
from benchmarks.models import echo, floats
from benchmarks.report import number, progress, ratios, spread, table
from benchmarks.served import Target, served

_IN_FLIGHT = 64
_MODEL = "echo"
_PLAIN = "neither"
_METRICS = "metrics, scraped"
_ALL = "every call traced"

_COLLECTOR = """
import grpc, signal
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(1))
path = "opentelemetry.proto.collector.trace.v1.TraceService"
handler = grpc.unary_unary_rpc_method_handler(lambda spans, context: b"")
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(path, {"Export": handler})])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
signal.pause()
"""


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, seconds = (2, 0.5) if quick else (9, 2.0)
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    with _collector() as endpoint, ExitStack() as stack:
        targets = {
            name: stack.enter_context(served({_MODEL: echo()}, *flags, environment=environment))
            for name, (flags, environment) in _contenders(endpoint).items()
        }
        loads = {name: H2load(target) for name, target in targets.items()}
        bodies = {name: t.body(_MODEL, {"x": floats()}, {"y": floats()}) for name, t in targets.items()}
        for turn in range(rounds):
            for name, target in targets.items():
                progress(f"tracing: round {turn + 1} of {rounds}: {name}")
                processor, answered = target.processor_s(), _answered(target)
                if name == _METRICS:  # as often as it is usual, and more
                    threading.Timer(seconds / 2, target.metrics).start()
                rates[name].append(loads[name].measure(bodies[name], _IN_FLIGHT, seconds).rate)
                costs[name].append((target.processor_s() - processor) / (_answered(target) - answered) * 1e6)
        dropped, calls = _dropped(targets[_ALL]), _answered(targets[_ALL])
    table(
        f"tracing: echo of 16 floats, {_IN_FLIGHT} in flight, over the same without traces and metrics. Of {calls:,} "
        f"calls that were all traced, {dropped:,.0f} spans were dropped",
        "metrics 0.97, 1 % traced 0.97, all traced 0.6",
        ("", "requests/s", "of neither", "server us/call"),
        [
            (name, number(rates[name]), spread(ratios(rates[name], rates[_PLAIN])), number(costs[name], 1))
            for name in rates
        ],
    )


def _contenders(endpoint: str) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """Flags and environment by name."""
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_INSECURE": "true"}
    return {
        _PLAIN: (("--metrics-port", "off"), {}),
        _METRICS: (("--metrics-port", "0"), {}),
        "1 % traced": (("--metrics-port", "off", "--trace-rate", "0.01"), otlp),
        _ALL: (("--metrics-port", "0", "--trace-rate", "1"), otlp),
    }


def _answered(target: Target) -> int:
    counts = target.counts(_MODEL)
    assert counts
    return counts.succeeded


def _dropped(target: Target) -> float:
    page = target.metrics()
    found = re.search(r"^tensorgate_spans_dropped_total (\S+)$", page, re.MULTILINE)
    assert found
    return float(found[1])


@contextmanager
def _collector() -> Iterator[str]:
    """A collector in a process of its own, which throws everything away; its endpoint."""
    with subprocess.Popen([sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()
