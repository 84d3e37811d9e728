"""The load generator for what h2load cannot send: different bodies, and arrivals that wait for nobody.

Runs as a process of its own: `Worker("benchmarks.generator")`. Bodies are files of one framed gRPC message each.
"""

from __future__ import annotations

import gc
import itertools
import math
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http2 import Connection
from benchmarks.measured import steady
from benchmarks.report import BenchmarkError
from benchmarks.worker import answer_jobs

PATH = "/inference.GRPCInferenceService/ModelInfer"
MARK = struct.pack("<Q", 0x6B72616D_746E656E)  # in a body: what to replace by a number of its own in every request
_OK = 0
_LEAD_S = 0.05


def closed(
    *,
    address: str,
    bodies: list[str],
    in_flight: int,
    count: int,
    order: list[int] | None = None,
    unique_from: int | None = None,
) -> dict[str, Any]:
    """Send `count` requests, always `in_flight` of them at once: `bodies` in `order`, in turn by default.

    With `unique_from`, `MARK` in the body becomes a number counted from there.
    """
    supply = _bodies(bodies, order, unique_from)
    processor = time.process_time()
    with Connection(address, PATH) as connection:
        start = time.perf_counter()
        ends, latencies = _keep_sending(connection, supply, in_flight, count)
    figures: dict[str, Any] = {"seconds": ends[-1] - start, "processor_s": time.process_time() - processor}
    if count >= 3 * in_flight:
        measured = steady(ends, latencies, in_flight)
        figures |= {"rate": measured.rate, "p50_ms": measured.p50_ms}
    return figures


def _keep_sending(
    connection: Connection, supply: Iterator[bytes], in_flight: int, count: int
) -> tuple[list[float], list[float]]:
    """The end and the latency of each request."""
    begun: dict[int, float] = {}
    ends: list[float] = []
    latencies: list[float] = []
    left = count
    while left or begun:
        for body in itertools.islice(supply, min(in_flight - len(begun), left)):
            begun[connection.send(body)] = time.perf_counter()
        left = count - len(ends) - len(begun)
        ended = connection.receive()
        now = time.perf_counter()
        for stream, status in ended:
            if status != _OK:
                raise BenchmarkError(f"a request was answered with gRPC status {status}: see the server's log")
            latencies.append(now - begun.pop(stream))
            ends.append(now)
    return ends, latencies


def _bodies(files: Sequence[str], order: Sequence[int] | None, unique_from: int | None) -> Iterator[bytes]:
    bodies = [Path(file).read_bytes() for file in files]
    if unique_from is None:
        return (bodies[index] for index in order) if order else itertools.cycle(bodies)
    before, after = bodies[0].split(MARK)
    return (before + struct.pack("<Q", number) + after for number in itertools.count(unique_from))


@dataclass(slots=True)
class _Outcomes:
    """What became of the requests of an open loop; times in seconds since each was sent."""

    deadline: float
    in_time: list[float] = field(default_factory=list)
    refused: list[tuple[int, float]] = field(default_factory=list)
    late: int = 0

    def add(self, status: int, waited: float) -> None:
        """Count an answer."""
        if waited > self.deadline:
            self.late += 1
        elif status == _OK:
            self.in_time.append(waited)
        else:
            self.refused.append((status, waited))


def open_loop(
    *, address: str, body: str, rate: float, seconds: float, warm_s: float, deadline_ms: int, seed: int
) -> dict[str, Any]:
    """Send requests at random moments, `rate` a second, each with a deadline, whatever becomes of those before.

    Only those due after `warm_s` seconds count. A request's time runs from when it was sent, as the server is told; how
    far this generator fell behind is in `lag_p99_ms`.
    """
    draw = np.random.default_rng(seed).uniform
    # Sorted uniform moments are Poisson arrivals whose number is given: no noise from how many a run happens to draw.
    due = np.sort([*draw(0, warm_s, round(rate * warm_s)), *draw(warm_s, warm_s + seconds, round(rate * seconds))])
    processor = time.process_time()
    gc.disable()  # a collection would show as lateness
    with Connection(address, PATH, deadline_ms) as connection:
        outcomes, lags = _send_when_due(connection, Path(body).read_bytes(), due.tolist(), warm_s, deadline_ms / 1000)
    gc.enable()
    return {
        "counted": int((due >= warm_s).sum()),
        "in_time": len(outcomes.in_time),
        "in_time_p50_ms": _quantile_ms(outcomes.in_time, 0.5),
        "in_time_p99_ms": _quantile_ms(outcomes.in_time, 0.99),
        "refused": Counter(status for status, _ in outcomes.refused),
        "refused_p50_ms": _quantile_ms([waited for _, waited in outcomes.refused], 0.5),
        "late": outcomes.late,
        "lag_p99_ms": _quantile_ms(lags, 0.99),
        "processor": (time.process_time() - processor) / (warm_s + seconds),
    }


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    return float(np.quantile(seconds, share)) * 1000 if seconds else math.nan


def _send_when_due(
    connection: Connection, body: bytes, due: Sequence[float], warm_s: float, deadline: float
) -> tuple[_Outcomes, list[float]]:
    """What became of the requests, and how long after its time each left."""
    outcomes, lags = _Outcomes(deadline), []
    under_way: dict[int, tuple[float, bool]] = {}  # when sent and whether it counts; the first expires first
    start, sent = time.perf_counter() + _LEAD_S, 0
    while sent < len(due) or under_way:
        now = time.perf_counter() - start
        while sent < len(due) and due[sent] <= now:
            under_way[connection.send(body)] = now, due[sent] >= warm_s
            lags.append(now - due[sent])
            sent += 1
        wake = [due[sent]] if sent < len(due) else []
        while under_way:
            stream, (moment, counts) = next(iter(under_way.items()))
            if moment + deadline > now:
                wake.append(moment + deadline)
                break
            connection.cancel(stream)
            del under_way[stream]
            outcomes.late += counts
        ended = connection.receive(max(min(wake, default=now) - (time.perf_counter() - start), 0))
        now = time.perf_counter() - start
        for stream, status in ended:
            moment, counts = under_way.pop(stream, (now, False))
            if counts:
                outcomes.add(status, now - moment)
    return outcomes, lags


if __name__ == "__main__":
    answer_jobs({"closed": closed, "open_loop": open_loop})
