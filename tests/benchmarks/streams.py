"""Part `streams`: messages through ModelStreamInfer, with a model that does nothing."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.h2load import H2load
from benchmarks.models import echo, floats
from benchmarks.report import number, progress, spread, table
from benchmarks.served import Body, Target, served

_LEVELS = (1, 4)
_MESSAGES = 1000
_MODEL = "echo"


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, seconds = (2, 0.5) if quick else (7, 2.0)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    with served({_MODEL: echo()}) as target:
        load = H2load(target)
        inputs, outputs = {"x": floats()}, {"y": floats()}
        single = target.body(_MODEL, inputs, outputs)
        stream = target.stream(_MODEL, inputs, outputs, _MESSAGES)
        for turn in range(rounds):
            for level in _LEVELS:
                for kind, body, in_flight in (("stream", stream, level), ("unary", single, 64)):
                    progress(f"streams: round {turn + 1} of {rounds}: {kind}, {in_flight} at once")
                    rate, cost = _measure(target, load, (body, in_flight), seconds)
                    rates[kind, level].append(rate)
                    costs[kind, level].append(cost)
    table(
        f"streams: echo of 16 floats through ModelStreamInfer, streams of {_MESSAGES:,} messages; beside it, in the "
        "same rounds, unary calls, 64 in flight",
        "22,000 messages/s on one stream, 24,500 on four",
        ("streams", "messages/s", "server us/message", "unary/s", "server us/call"),
        [
            (
                str(level),
                spread(rates["stream", level], 0),
                number(costs["stream", level], 1),
                number(rates["unary", level]),
                number(costs["unary", level], 1),
            )
            for level in _LEVELS
        ],
    )


def _measure(target: Target, load: H2load, job: tuple[Body, int], seconds: float) -> tuple[float, float]:
    """Messages per second, and the server's processor time for each in microseconds."""
    body, in_flight = job
    answered, processor = _answered(target), target.processor_s()
    measured = load.measure(body, in_flight, seconds)
    spent = target.processor_s() - processor
    return measured.rate * body.messages, spent / (_answered(target) - answered) * 1e6


def _answered(target: Target) -> int:
    counts = target.counts(_MODEL)
    assert counts
    return counts.succeeded
