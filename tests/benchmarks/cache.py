"""Part `cache`: what the response cache gives on a hit, costs on a miss, and saves when equal requests meet."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.generator import MARK
from benchmarks.h2load import H2load
from benchmarks.models import echo, floats, front
from benchmarks.report import median_range, number, progress, ratios, spread, table
from benchmarks.served import Body, Target, served
from benchmarks.worker import Worker

_ON = "response_cache { enable: true }"
# Names of one length: in longer messages a tensor may start where numpy must copy it, a tenth of the time at 600 KB.
_CACHED, _PLAIN, _SLOW = "cached", "direct", "slow"
_MODELS = (_CACHED, _PLAIN)
_HIT_LEVELS = (1, 8, 64)
_ECHO, _FRONT = "in and out", "in, 64 bytes out"
_MISS_CASES = tuple(
    (kind, size, in_flight)
    for kind, size in ((_ECHO, 16), (_FRONT, 150_000), (_ECHO, 150_000))
    for in_flight in (8, 64)
)
_DELAY_MS, _AT_ONCE = 50, 100


def run(*, quick: bool) -> None:
    """Measure and print."""
    with Worker("benchmarks.generator") as generator, tempfile.TemporaryDirectory() as folder:
        pairs = {
            _ECHO: {_CACHED: echo(_ON), _PLAIN: echo()},
            _FRONT: {_CACHED: front(Path(folder), _ON), _PLAIN: front(Path(folder))},
        }
        with served({**pairs[_ECHO], _SLOW: echo(_ON, delay_ms=_DELAY_MS)}) as target:
            _hits(target, *((2, 0.3) if quick else (7, 1.0)))
            _meetings(generator, target, 1 if quick else 5)
        misses = []
        for kind, size, in_flight in _MISS_CASES:
            with served(pairs[kind]) as target:  # a cache of its own, so that none starts with another's entries
                miss = _Miss(generator, target, size, in_flight)
                misses.append(
                    (f"{size * 4:,} bytes {kind}", in_flight, miss.measure(*((4, 0.2) if quick else (80, 0.25))))
                )
    _report_misses(misses)


def _hits(target: Target, rounds: int, seconds: float) -> None:
    load = H2load(target)
    bodies = [target.body(model, {"x": floats()}, {"y": floats()}) for model in _MODELS]
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(rounds):
        for level in _HIT_LEVELS:
            for body in bodies[:: -1 if turn % 2 else 1]:
                progress(f"cache: hits: round {turn + 1} of {rounds}: {body.model}, {level} in flight")
                rates[body.model, level].append(load.measure(body, level, seconds).rate)
    table(
        "cache: one request over and over, echo of 16 floats: answered from the cache over without one",
        "none yet; more is better",
        ("in flight", "hits/s", "without cache/s", "over without"),
        [
            (
                str(level),
                spread(rates[_CACHED, level], 0),
                number(rates[_PLAIN, level]),
                spread(ratios(rates[_CACHED, level], rates[_PLAIN, level])),
            )
            for level in _HIT_LEVELS
        ],
    )


def _meetings(generator: Worker, target: Target, rounds: int) -> None:
    executions, seconds = [], []
    for turn in range(rounds):
        progress(f"cache: equal requests: round {turn + 1} of {rounds}")
        row = floats() + turn
        body = target.unchecked(_SLOW, {"x": row})
        before = target.counts(_SLOW)
        options = {"in_flight": _AT_ONCE, "count": _AT_ONCE}
        seconds.append(generator("closed", address=target.address, bodies=[str(body.file)], **options)["seconds"])
        after = target.counts(_SLOW)
        target.body(_SLOW, {"x": row}, {"y": row})  # checked now: before, the answer would have been in the cache
        if before and after:
            executions.append(after.since(before).executions)
    table(
        f"cache: {_AT_ONCE} equal new requests at once, a model of {_DELAY_MS} ms",
        "1 execution",
        ("executions", "ms until all are answered"),
        [
            (
                spread(executions, 0) if executions else "n/a",
                spread([1000 * value for value in seconds], 0),
            )
        ],
    )


@dataclass(slots=True)
class _Round:
    """One model's figures of one round: requests per second, and the server's processor time for each."""

    rate: float
    server_us: float


Rounds = dict[str, list[_Round]]


@dataclass(slots=True)
class _Miss:
    """Unique requests to two equal models, one with a cache, in many short turns."""

    generator: Worker
    target: Target
    size: int
    in_flight: int
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1, 1_000_000))

    def measure(self, rounds: int, seconds: float) -> Rounds:
        """So many turns of about so many seconds each."""
        row = floats(self.size)
        row[0, 2:4] = np.frombuffer(MARK, np.float32)
        bodies = [self.target.body(model, {"x": row}, {}) for model in _MODELS]
        least = 4 * self.in_flight
        for body in bodies:  # the first requests to a fresh server are slow
            rate = self._turn(body, least).rate
            rate = self._turn(body, max(round(rate * seconds), least)).rate
        count = max(round(rate * seconds), least)
        taken: Rounds = defaultdict(list)
        for turn in range(rounds):
            progress(f"cache: misses: {self.size * 4:,} bytes, {self.in_flight} in flight: {turn + 1} of {rounds}")
            for body in bodies[:: -1 if turn % 2 else 1]:
                taken[body.model].append(self._turn(body, count))
        return taken

    def _turn(self, body: Body, count: int) -> _Round:
        with self.target.answers_all(body.model, count):
            before = self.target.processor_s()
            options = {"in_flight": self.in_flight, "count": count, "unique_from": next(self.numbers)}
            result = self.generator("closed", address=self.target.address, bodies=[str(body.file)], **options)
            return _Round(result["rate"], (self.target.processor_s() - before) / count * 1e6)


def _report_misses(misses: list[tuple[str, int, Rounds]]) -> None:
    rows = []
    for name, in_flight, taken in misses:
        rate = {model: [one.rate for one in rounds] for model, rounds in taken.items()}
        processor = {model: [one.server_us for one in rounds] for model, rounds in taken.items()}
        slower, dearer = ratios(rate[_CACHED], rate[_PLAIN]), ratios(processor[_CACHED], processor[_PLAIN])
        rows.append(
            (
                *(name, str(in_flight), number(rate[_PLAIN])),
                *(spread(slower, 3), median_range(slower)),
                number(processor[_PLAIN], 1),
                *(spread(dearer, 3), median_range(dearer)),
            )
        )
    count = statistics.median(len(taken[_PLAIN]) for _, _, taken in misses)
    table(
        f"cache: requests that all differ, cache on over off, {count:.0f} pairs of turns",
        "on over off > 0.97 in requests/s; < 1.03 in processor time a request, which noise disturbs less",
        (
            *("tensor", "in flight", "off/s", "on over off", "its median, 95 %"),
            *("server us off", "us on over off", "its median, 95 %"),
        ),
        rows,
    )
