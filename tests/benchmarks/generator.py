"""The load generator for what h2load cannot send: different bodies, and arrivals that wait for nobody.

Runs as a process of its own: `Worker("benchmarks.generator")`. Bodies are files of one framed gRPC message each.
"""

from __future__ import annotations

import asyncio
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

import grpc
import numpy as np
import uvloop

from benchmarks.measured import steady
from benchmarks.report import BenchmarkError
from benchmarks.worker import answer_jobs

SERVICE = "/inference.GRPCInferenceService/"
PATH = f"{SERVICE}ModelInfer"
MARK = struct.pack("<Q", 0x6B72616D_746E656E)  # in a body: what to replace by a number of its own in every request
_FRAME = 5  # bytes before the message, which grpc writes itself
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own for every job
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
    supply = itertools.islice(_bodies(bodies, order, unique_from), count)
    processor = time.process_time()
    start = time.perf_counter()
    try:
        ends, latencies = uvloop.run(_keep_sending(address, supply, in_flight))
    except grpc.aio.AioRpcError as error:
        raise BenchmarkError(f"a request was answered with {error.code().name}: {error.details()}") from error
    figures: dict[str, Any] = {"seconds": ends[-1] - start, "processor_s": time.process_time() - processor}
    if count >= 3 * in_flight:
        measured = steady(ends, latencies, in_flight)
        figures |= {"rate": measured.rate, "p50_ms": measured.p50_ms}
        figures["latencies_ms"] = [round(latency * 1000, 3) for latency in latencies]
    return figures


async def _keep_sending(address: str, supply: Iterator[bytes], in_flight: int) -> tuple[list[float], list[float]]:
    """The end and the latency of each request, in the order of their ends."""
    ends: list[float] = []
    latencies: list[float] = []

    async def caller() -> None:
        for body in supply:  # shared: whoever is free sends the next one
            sent = time.perf_counter()
            await infer(body)
            ends.append(time.perf_counter())
            latencies.append(ends[-1] - sent)

    async with grpc.aio.insecure_channel(address, _OPTIONS) as channel:
        infer = channel.unary_unary(PATH)
        await asyncio.gather(*(caller() for _ in range(in_flight)))
    return ends, latencies


def _bodies(files: Sequence[str], order: Sequence[int] | None, unique_from: int | None) -> Iterator[bytes]:
    bodies = [Path(file).read_bytes()[_FRAME:] for file in files]
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

    def add(self, status: grpc.StatusCode, waited: float) -> None:
        """Count an answer."""
        if waited > self.deadline:
            self.late += 1
        elif status is grpc.StatusCode.OK:
            self.in_time.append(waited)
        else:
            self.refused.append((status.value[0], waited))


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
    outcomes = _Outcomes(deadline_ms / 1000)
    gc.disable()  # a collection would show as lateness
    lags = uvloop.run(_send_when_due(address, Path(body).read_bytes()[_FRAME:], due.tolist(), warm_s, outcomes))
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


async def _send_when_due(
    address: str, body: bytes, due: Sequence[float], warm_s: float, outcomes: _Outcomes
) -> list[float]:
    """How long after its time each request left; what became of them goes into `outcomes`."""
    lags: list[float] = []

    async def call(counts: bool) -> None:  # noqa: FBT001
        sent = time.perf_counter()
        try:
            await infer(body, timeout=outcomes.deadline)
            status = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            status = error.code()
        if counts:
            outcomes.add(status, time.perf_counter() - sent)

    async with grpc.aio.insecure_channel(address, _OPTIONS) as channel, asyncio.TaskGroup() as calls:
        infer = channel.unary_unary(PATH)
        await channel.channel_ready()
        start = time.perf_counter() + _LEAD_S
        for moment in due:
            if (early := start + moment - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            lags.append(time.perf_counter() - start - moment)
            calls.create_task(call(moment >= warm_s))
    return lags


if __name__ == "__main__":
    answer_jobs({"closed": closed, "open_loop": open_loop})
