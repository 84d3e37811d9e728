"""Where the requests' time went, by the server's own metrics."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from math import inf

from prometheus_client.parser import text_string_to_metric_families

_QUANTILES = (0.5, 0.95, 0.99)
_STAGES, _REQUESTS = "tensorgate_stage_duration_seconds_bucket", "tensorgate_request_duration_seconds_bucket"

_Buckets = list[tuple[float, float]]
"""Upper bounds in seconds, each with how many requests took at most so long."""


def table(url: str) -> str:
    """Quantiles of every stage of every model, read from a server's metrics, as text."""
    with urllib.request.urlopen(url, timeout=10) as page:  # noqa: S310  # our own server's
        found = _buckets(page.read().decode())
    lines = [f"{'model':20} {'stage':10} {'p50 ms':>7} {'p95 ms':>7} {'p99 ms':>7}"]
    shown = ""
    for (model, stage), buckets in found.items():
        cells = [f"{quantile(share, buckets) * 1000:7.2f}" for share in _QUANTILES]
        lines.append(" ".join([f"{model if model != shown else '':20}", f"{stage:10}", *cells]))
        shown = model
    lines.append("(inside the server, warm-up included; read from its metrics, so between the bounds of their buckets)")
    return "\n".join(lines)


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """What a share of the values is at most, taking a bucket's to lie evenly in it, as `histogram_quantile` does."""
    rank = share * buckets[-1][1]
    lower, before = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == inf:
                break
            return lower + (bound - lower) * (rank - before) / (count - before)
        lower, before = bound, count
    return lower


def _buckets(page: str) -> dict[tuple[str, str], _Buckets]:
    """The buckets of every model and stage that there were requests of; last comes the whole request."""
    found: defaultdict[tuple[str, str], _Buckets] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in (_STAGES, _REQUESTS):
                key = sample.labels["model"], sample.labels.get("stage", "in all")
                found[key].append((float(sample.labels["le"]), sample.value))
    in_order = sorted(found, key=lambda key: (key[0], key[1] == "in all"))  # stages keep their order
    return {key: found[key] for key in in_order if found[key][-1][1]}
