"""Part `overload`: how much of its capacity a gateway still delivers in time when it is asked for more."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.h2load import H2load
from benchmarks.minilm import LENGTH
from benchmarks.models import MINILM, echo, embedding, floats, minilm, tokens
from benchmarks.report import number, progress, spread, table
from benchmarks.served import Body, Target, served
from benchmarks.worker import Worker

_DEADLINE_MS = 100
_WARM_S = 0.5
_LOADS = (0.9, 1.0, 2.0, 4.0)
_DELAY_MS, _BATCH = 20, 8
_SLOW = "slow"
_IN_FLIGHT = 32
_DEADLINE, _EXHAUSTED = 4, 8  # gRPC status codes
_COLUMNS = (
    *("load", "sent/s", "in time/s", "share of capacity", "in time %", "p50 ms", "p99 ms"),
    *("EXHAUSTED %", "DEADLINE %", "other %", "refused p50 ms", "late %", "sender lag p99 ms", "sender cores"),
)

Results = dict[float, list[dict[str, Any]]]


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, seconds = (1, 1.5) if quick else (3, 4.0)
    with Worker("benchmarks.generator") as generator:
        with served({_SLOW: echo(max_batch_size=_BATCH, delay_ms=_DELAY_MS)}) as target:
            body = target.body(_SLOW, {"x": floats()}, {"y": floats()})
            slow = _rounds(generator, target, body, lambda: _BATCH / _DELAY_MS * 1000, (rounds, seconds))
        _report(f"a model of {_DELAY_MS} ms for up to {_BATCH} rows, no processor time", slow)
        with Worker("benchmarks.bare") as bare:
            expected = embedding(bare("answer", length=LENGTH)["embedding"])
        with served({MINILM: minilm()}) as target:
            body, load = target.body(MINILM, tokens(1, LENGTH), expected, 1e-4), H2load(target)
            real = _rounds(
                generator, target, body, lambda: load.measure(body, _IN_FLIGHT, seconds).rate, (rounds, seconds)
            )
        _report(f"all-MiniLM-L6-v2 (capacity: closed loop, {_IN_FLIGHT} in flight)", real)


def _rounds(
    generator: Worker, target: Target, body: Body, capacity: Callable[[], float], extent: tuple[int, float]
) -> Results:
    results: Results = defaultdict(list)
    rounds, seconds = extent
    for turn in range(rounds):
        progress(f"overload: {body.model}: round {turn + 1} of {rounds}: capacity")
        full = capacity()
        for load in _LOADS[:: -1 if turn % 2 else 1]:
            progress(f"overload: {body.model}: round {turn + 1} of {rounds}: {load:g} x {full:,.0f}/s")
            options = {"rate": full * load, "seconds": seconds, "warm_s": _WARM_S, "deadline_ms": _DEADLINE_MS}
            result = generator("open_loop", address=target.address, body=str(body.file), seed=turn, **options)
            rate = result["in_time"] / seconds
            results[load].append({**result, "offered": full * load, "in_time_rate": rate, "share": rate / full})
            generator("closed", address=target.address, bodies=[str(body.file)], in_flight=1, count=1)  # calm again
    return results


def _report(model: str, results: Results) -> None:
    table(
        f"overload: {model}: answered within {_DEADLINE_MS} ms, of random arrivals",
        "share of capacity >= 0.9 (at 0.9 x that is every request)",
        _COLUMNS,
        [_row(load, results[load]) for load in _LOADS],
    )


def _row(load: float, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    def figure(name: str, digits: int = 1) -> str:
        return number([run[name] for run in runs], digits)

    def percent(counts: list[int]) -> str:
        return number([100 * count / run["counted"] for count, run in zip(counts, runs, strict=True)], 1)

    refusals = [Counter({int(status): count for status, count in run["refused"].items()}) for run in runs]
    return (
        f"{load:g} x",
        figure("offered", 0),
        figure("in_time_rate", 0),
        spread([run["share"] for run in runs]),
        percent([run["in_time"] for run in runs]),
        figure("in_time_p50_ms"),
        figure("in_time_p99_ms"),
        percent([refused[_EXHAUSTED] for refused in refusals]),
        percent([refused[_DEADLINE] for refused in refusals]),
        percent([refused.total() - refused[_EXHAUSTED] - refused[_DEADLINE] for refused in refusals]),
        figure("refused_p50_ms"),
        percent([run["late"] for run in runs]),
        figure("lag_p99_ms"),
        figure("processor", 2),
    )
