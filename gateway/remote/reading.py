"""A model's servers as the metrics show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class ServerReading:
    """A server at one moment.

    Attributes:
        address: "host:port".
        healthy: whether it is sent batches.
        in_flight: batches that it has.
        calls, failures: batches that it was sent, and those of them that it failed on.
    """

    address: str
    healthy: bool
    in_flight: int
    calls: int
    failures: int


Servers: TypeAlias = Mapping[tuple[str, str], Sequence[ServerReading]]
"""Those of each model that has any, by its name and version."""

_LABELS = ("model", "version", "server")

_GAUGES: tuple[tuple[str, str, Callable[[ServerReading], float]], ...] = (
    ("tensorgate_remote_healthy", "Whether a server is sent batches", lambda server: server.healthy),
    ("tensorgate_remote_in_flight", "Batches that a server has", lambda server: server.in_flight),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ServerReading], float]], ...] = (
    ("tensorgate_remote_batches", "Batches that a server was sent", lambda server: server.calls),
    ("tensorgate_remote_failures", "Batches that a server failed on", lambda server: server.failures),
)


def families(models: Servers) -> Iterator[Metric]:
    """What the metrics page says of servers; without any, not even the names."""
    if not models:
        return
    for kind, wanted in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for name, text, value in wanted:
            family = kind(name, text, labels=_LABELS)
            for model, servers in models.items():
                for server in servers:
                    family.add_metric((*model, server.address), value(server))
            yield family
