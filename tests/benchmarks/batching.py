"""Part `batching`: what the gateway itself costs, with a model that does nothing."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.h2load import H2load
from benchmarks.models import echo, floats
from benchmarks.report import number, progress, ratios, spread, table
from benchmarks.served import served

_LEVELS = (1, 8, 64)
_BATCHED, _SINGLE = "batched", "single"


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, seconds = (2, 0.3) if quick else (7, 1.0)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    p50s: dict[int, list[float]] = defaultdict(list)
    sizes: dict[int, list[float]] = defaultdict(list)
    with served({_BATCHED: echo(), _SINGLE: echo(max_batch_size=0)}) as target:
        load = H2load(target)
        bodies = [target.body(name, {"x": floats()}, {"y": floats()}) for name in (_BATCHED, _SINGLE)]
        for turn in range(rounds):
            for level in _LEVELS:
                for body in bodies[:: -1 if turn % 2 else 1]:
                    progress(f"batching: round {turn + 1} of {rounds}: {body.model}, {level} in flight")
                    before = target.counts(body.model)
                    measured = load.measure(body, level, seconds)
                    rates[body.model, level].append(measured.rate)
                    if body.model == _BATCHED:
                        p50s[level].append(measured.p50_ms)
                    after = target.counts(body.model)
                    if body.model == _BATCHED and before and after:
                        counted = after.since(before)
                        sizes[level].append(counted.rows / counted.executions)
    table(
        "batching: echo of 16 floats: in batches (max_batch_size 64) over one by one (max_batch_size 0)",
        "none yet; more is better",
        ("in flight", "requests/s", "p50 ms", "rows a batch", "one by one/s", "over one by one"),
        [
            (
                str(level),
                spread(rates[_BATCHED, level], 0),
                number(p50s[level], 2),
                number(sizes[level], 1) if sizes[level] else "n/a",
                number(rates[_SINGLE, level]),
                spread(ratios(rates[_BATCHED, level], rates[_SINGLE, level])),
            )
            for level in _LEVELS
        ],
    )
