"""Part `minilm`: a real transformer behind the gateway against the same transformer on the bare runtime."""

from __future__ import annotations

import statistics
from collections import defaultdict

from benchmarks.h2load import H2load
from benchmarks.measured import Measured
from benchmarks.models import MINILM, embedding, minilm, tokens
from benchmarks.report import number, progress, ratios, spread, table
from benchmarks.served import Body, served
from benchmarks.worker import Worker

LENGTH = 32
_LEVELS = (1, 8, 16, 32)
_SIZES = (1, 2, 4, 8, 16, 32)
# Each level next to the batch sizes it is compared with, so that both meet the same minute of a noisy machine.
_TURN = [step for size in _SIZES for step in (("bare", size), *([("gateway", size)] if size in _LEVELS else []))]

Series = dict[int, list[Measured]]


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, seconds = (2, 0.4) if quick else (7, 1.5)
    with Worker("benchmarks.bare") as bare, served({MINILM: minilm()}) as target:
        expected = embedding(bare("answer", length=LENGTH)["embedding"])
        body = target.body(MINILM, tokens(1, LENGTH), expected, 1e-4)
        gateway_series, bare_series = _rounds(bare, H2load(target), body, rounds, seconds)
    _report(gateway_series, bare_series)


def _rounds(bare: Worker, load: H2load, body: Body, rounds: int, seconds: float) -> tuple[Series, Series]:
    """One after the other, never at once: server and bare loop would share the cores."""
    series: dict[str, Series] = {"gateway": defaultdict(list), "bare": defaultdict(list)}
    for turn in range(rounds):
        for contender, size in _TURN[:: -1 if turn % 2 else 1]:
            progress(f"minilm: round {turn + 1} of {rounds}: {contender} {size}")
            if contender == "bare":
                measured = Measured(**bare("measure", rows=size, length=LENGTH, seconds=seconds))
            else:
                measured = load.measure(body, size, seconds)
            series[contender][size].append(measured)
    return series["gateway"], series["bare"]


def _rates(series: list[Measured]) -> list[float]:
    return [measured.rate for measured in series]


def _p50s(series: list[Measured]) -> list[float]:
    return [measured.p50_ms for measured in series]


def _best(bare: Series, limit: int) -> int:
    """The batch size at which the bare runtime is fastest, over all rounds; none above `limit`."""
    return max((size for size in _SIZES if size <= limit), key=lambda size: statistics.median(_rates(bare[size])))


def _report(gateway: Series, bare: Series) -> None:
    table(
        f"minilm: bare onnxruntime, {LENGTH} tokens a row, {len(bare[1])} rounds: median (least-greatest)",
        "none: it is what the gateway is held against",
        ("rows a call", "rows/s", "p50 ms a call"),
        [(str(size), spread(_rates(bare[size]), 0), number(_p50s(bare[size]), 2)) for size in _SIZES],
    )
    rows, overall = [], _best(bare, max(_SIZES))
    for level in _LEVELS:
        rates, fair = _rates(gateway[level]), _best(bare, level)
        rows.append(
            (
                str(level),
                spread(rates, 0),
                number(_p50s(gateway[level]), 2),
                str(fair),
                spread(ratios(rates, _rates(bare[fair]))),
                spread(ratios(rates, _rates(bare[overall]))),
            )
        )
    table(
        f"minilm: gateway over bare runtime, at its best batch up to the number in flight and at its best ({overall})",
        "over bare >= 0.95 from 8 in flight",
        ("in flight", "rows/s", "p50 ms", "bare batch", "over bare", "over best bare"),
        rows,
    )
    added = [mine - its for mine, its in zip(_p50s(gateway[1]), _p50s(bare[1]), strict=True)]
    table(
        "minilm: what the gateway adds to a request alone, in the median",
        "<= 0.5 ms",
        ("gateway p50 ms", "bare p50 ms", "added ms"),
        [(spread(_p50s(gateway[1])), spread(_p50s(bare[1])), spread(added))],
    )
