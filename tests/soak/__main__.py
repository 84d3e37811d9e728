"""`make soak`: random traffic from several processes against a gateway in this one, which is then looked into.

Exits with 1 if a request was lost or answered wrongly, memory grew, or the server holds what it should not.
"""

# ruff: noqa: T201  # a program that prints

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

import uvloop

from backends.registry import Registry
from gateway.engine import Threads
from gateway.logs import ServerLog
from gateway.server import Server
from gateway.settings import Settings
from gateway.source import open_source
from soak.drive import Report, drive
from soak.inside import Held, resident_mb
from soak.models import Factors, build

_NOISE_MB = 24.0
_QUIET_S = 3.0  # for what the last requests left to be done


class Complaints(logging.Handler):
    """Collects what asyncio says of tasks and futures that nobody looked after."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage().splitlines()[0])


def main() -> None:
    """Parse the arguments, run and exit."""
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=3, help="of callers")
    parser.add_argument("--seed", default=os.urandom(4).hex())
    parsed = parser.parse_args()
    asyncio_says = Complaints()
    logging.getLogger("asyncio").addHandler(asyncio_says)
    logging.getLogger("gateway").setLevel(logging.CRITICAL)  # poisoned requests are meant to fail
    with tempfile.TemporaryDirectory() as folder:
        soak = _soak(Path(folder), parsed.seed, parsed.minutes * 60, parsed.processes)
        faults = uvloop.run(soak)
    faults += [f"asyncio: {line}" for line in asyncio_says.lines]
    for fault in faults:
        print(f"FAULT  {fault}")
    print("failed" if faults else "passed", f"(--seed {parsed.seed})", flush=True)
    os._exit(bool(faults))  # as the server itself ends


async def _soak(folder: Path, seed: str, seconds: float, processes: int) -> list[str]:
    build(folder / "models")
    Factors(folder / "factors")
    settings = Settings(
        _cli_parse_args=False,
        model_repository=folder / "models",
        port=0,
        cache_size_mb=4,
        model_control="explicit",
        load_model="*",
    )
    log = ServerLog(settings.log_level, "human", sys.stderr)
    server = Server(settings, open_source(settings), log, Threads(Registry()))
    address = f"{settings.host}:{await server.start()}"
    await server.load()
    await drive(address, folder, f"{seed} first", 3, processes)  # starts the pools' threads
    await asyncio.sleep(_QUIET_S)
    before = Held.now(server)
    memory: list[tuple[float, float]] = []
    report = await _watched(memory, drive(address, folder, seed, seconds, processes))
    await asyncio.sleep(_QUIET_S)
    after = Held.now(server)
    _print(report, memory, after)
    faults = _judge(report, memory, after.beyond(before))
    if not await server.drain():
        faults.append("the server did not drain")
    return faults


async def _watched(memory: list[tuple[float, float]], driving: Awaitable[Report]) -> Report:
    """Drive, and note this process's memory every second."""
    began, task = time.monotonic(), asyncio.ensure_future(driving)
    while not task.done():
        memory.append((time.monotonic() - began, resident_mb()))
        await asyncio.wait({task}, timeout=1)
    return task.result()


def _growth(memory: list[tuple[float, float]]) -> float:
    """MB between the minute after the warm-up, itself a minute, and the last one; all shorter in a short run."""
    minute = min(60.0, memory[-1][0] / 5)
    first = [mb for at, mb in memory if minute <= at < 2 * minute]
    last = [mb for at, mb in memory if at >= memory[-1][0] - minute]
    return statistics.median(last) - statistics.median(first)


def _judge(report: Report, memory: list[tuple[float, float]], left: list[str]) -> list[str]:
    faults = [f"still there: {line}" for line in left]
    if not report.good:
        faults.append("requests were lost, answered wrongly or not accounted for")
    if (growth := _growth(memory)) > _NOISE_MB:
        faults.append(f"memory grew by {growth:.1f} MB")
    return faults


def _print(report: Report, memory: list[tuple[float, float]], after: Held) -> None:
    for outcome, count in report.outcomes.most_common():
        print(f"{outcome:20} {count:9}")
    for name in ("wrong", "lost"):
        print(f"{name:20} {report.outcomes[name]:9}")
    for complaint in report.complaints:
        print(f"    {complaint}")
    step = max(len(memory) // 10, 1)
    print("memory in MB by second:", ", ".join(f"{at:.0f}: {mb:.0f}" for at, mb in memory[::step]))
    print(f"growth after the warm-up: {_growth(memory):.1f} MB")
    for kind in ("pending", "objects", "tasks", "threads"):
        print(f"{kind}: {dict(getattr(after, kind))}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
