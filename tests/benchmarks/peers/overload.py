"""Open loops: what is answered in time of the same requests, at the same moments, when they are more than can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.measured import Measured
from benchmarks.peers.contenders import Server
from benchmarks.peers.results import REFERENCE, Series
from benchmarks.peers.servers import MINILM_QUEUE
from benchmarks.peers.turns import turn
from benchmarks.peers.workloads import MINILM_CALLS, OURS_AND_TRITON, Workload
from benchmarks.report import BenchmarkError, number, progress
from benchmarks.worker import Worker

NAME = "overload"
_LOADS = (0.9, 1.0, 2.0)
_IN_FLIGHT = 32
_DEADLINE_MS, _WARM_S = 100, 0.5


@dataclass(frozen=True, slots=True)
class _Entry:
    """A server, and which of its models is called."""

    server: Server
    calls: Workload


Runs = dict[tuple[float, str], list[dict[str, Any]]]


def measure(servers: Mapping[str, Server], rounds: int, seconds: float) -> list[Series]:
    """Each round begins with everybody's capacity; the reference's is what all are loaded with multiples of."""
    entries = {name: _Entry(servers[name], MINILM_CALLS) for name in OURS_AND_TRITON if name in servers}
    if REFERENCE in servers:
        queue = replace(MINILM_CALLS, name=MINILM_QUEUE, model=MINILM_QUEUE)
        entries[f"{REFERENCE}-queue"] = _Entry(servers[REFERENCE], queue)
    runs: Runs = defaultdict(list)
    with Worker("benchmarks.generator") as generator:
        for turn_number in range(rounds):
            _round(entries, generator, turn_number, seconds, runs)
    return [
        Series(NAME, f"{load:g} x", name, _measured(runs[load, name], seconds), _note(runs[load, name]))
        for load in _LOADS
        for name in entries
    ]


def _round(entries: Mapping[str, _Entry], generator: Worker, seed: int, seconds: float, runs: Runs) -> None:
    capacities = {}
    for name, entry in entries.items():
        if entry.calls is not MINILM_CALLS:
            continue  # it refuses what a closed loop of so many asks
        progress(f"{NAME}: round {seed + 1}: {name}: capacity")
        capacities[name] = entry.server.measure(entry.calls, _IN_FLIGHT, seconds / 4).rate
    capacity = capacities.get(REFERENCE) or next(iter(capacities.values()))
    for load in _LOADS:
        for name in list(entries)[:: -1 if seed % 2 else 1]:
            progress(f"{NAME}: round {seed + 1}: {name}: {load:g} x {capacity:,.0f}/s")
            target = entries[name].server.target
            options = {"rate": capacity * load, "seconds": seconds, "warm_s": _WARM_S, "deadline_ms": _DEADLINE_MS}
            with turn(target.pid):
                file = str(entries[name].server.body(entries[name].calls).file)
                result = generator("open_loop", address=target.address, body=file, seed=seed, **options)
                with suppress(BenchmarkError):  # who refuses has little left to do
                    # Answered once all that is still queued has been worked off.
                    generator("closed", address=target.address, bodies=[file], in_flight=1, count=1)
            runs[load, name].append(result)


def _measured(runs: list[dict[str, Any]], seconds: float) -> list[Measured]:
    return [Measured(run["in_time"] / seconds, run["in_time_p50_ms"]) for run in runs]


def _note(runs: list[dict[str, Any]]) -> str:
    def percent(counts: list[int]) -> str:
        return number([100 * count / run["counted"] for count, run in zip(counts, runs, strict=True)])

    refused = percent([sum(run["refused"].values()) for run in runs])
    return f"{refused} % refused in time, {percent([run['late'] for run in runs])} % not answered"
