"""What a server's /metrics says, scraped the way Prometheus does."""

from __future__ import annotations

import urllib.error
import urllib.request
from email.message import Message

from prometheus_client.parser import text_string_to_metric_families

from support.server import Gateway, ServerProcess

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Samples = dict[tuple[str, ...], float]
"""Values by name and the values of the labels, in the labels' order of names."""


def metrics_url(server: ServerProcess) -> str:
    """Where a server says its metrics are."""
    return server.wait_for_log(r"metrics on (http://\S+)")[1]


def fetch(url: str, accept: str = "", **options: str) -> tuple[str, Message]:
    """A page and its headers."""
    headers = {"Accept": accept} if accept else {}
    request = urllib.request.Request(url, headers=headers, **options)  # noqa: S310  # our own
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # the same
        return answer.read().decode(), answer.headers


def refused(url: str, **options: str) -> tuple[int, str]:
    """The HTTP status that a request is refused with, and what is said."""
    try:
        page, _ = fetch(url, **options)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    raise AssertionError(f"not refused: {page}")


def samples(page: str) -> Samples:
    """Everything on a page in Prometheus' text format."""
    untyped = page.replace(" counter\n", " untyped\n")  # the parser would put _total behind Triton's names
    found = [sample for family in text_string_to_metric_families(untyped) for sample in family.samples]
    values = {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for s in found}
    assert len(values) == len(found), "something is said twice"
    return values


def scrape(gateway: Gateway) -> Samples:
    """Everything that a server's metrics say now."""
    return samples(fetch(metrics_url(gateway.server))[0])


def of_model(scraped: Samples, name: str, model: str, version: str = "1") -> dict[str, float]:
    """The values of one name and one version of a model, by their further label; "" if there is none."""
    found = {key[1:]: value for key, value in scraped.items() if key[0] == name}
    return {
        "".join(label for label in labels if label not in (model, version)): value
        for labels, value in found.items()
        if model in labels and version in labels
    }


def histogram(scraped: Samples, name: str, *labels: str) -> tuple[list[tuple[float, float]], float, float]:
    """Buckets, count and sum of a histogram; checked for what every histogram has to be. Labels as in `Samples`."""
    buckets = sorted(
        (float(key[1]), n) for key, n in scraped.items() if (key[0], *key[2:]) == (f"{name}_bucket", *labels)
    )
    count, total = scraped[(f"{name}_count", *labels)], scraped[(f"{name}_sum", *labels)]
    assert [n for _, n in buckets] == sorted(n for _, n in buckets), "a bucket has less than those before it"
    assert buckets[-1] == (float("inf"), count)
    return buckets, count, total
