"""h2load, the closed-loop load generator that costs least: one connection with so many requests in flight."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.generator import SERVICE
from benchmarks.measured import Measured, steady
from benchmarks.report import BenchmarkError
from benchmarks.served import Body, Target

_PILOT_S = 0.3
_LONGEST_S = 300


def executable() -> str:
    """Where h2load is.

    Raises:
        BenchmarkError: nowhere.
    """
    path = shutil.which("h2load")
    if path is None:
        raise BenchmarkError("h2load is missing: apt install nghttp2-client")
    return path


class H2load:
    """Measures a target, remembering how fast it was, so that a round lasts as long as asked for."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._rates: dict[tuple[Body, int], float] = {}

    def measure(self, body: Body, in_flight: int, seconds: float) -> Measured:
        """Throughput and latency of equal calls.

        h2load sees no gRPC status: `body` was checked when it was made, and the server's own count is checked here.
        """
        key = body, in_flight
        if key not in self._rates:
            self._rates[key] = self._run(body, in_flight, 6 * in_flight).rate  # also warms the server up
            self._rates[key] = self._run(body, in_flight, self._count(key, _PILOT_S)).rate
        measured = self._run(body, in_flight, self._count(key, seconds))
        self._rates[key] = measured.rate
        return measured

    def _count(self, key: tuple[Body, int], seconds: float) -> int:
        return max(round(self._rates[key] * seconds), 6 * key[1], 20)

    def _run(self, body: Body, in_flight: int, count: int) -> Measured:
        with self._target.answers_all(body.model, count * body.messages), tempfile.NamedTemporaryFile("r") as log:
            command = [executable(), "-c", "1", "-m", str(in_flight), "-n", str(count), "-d", str(body.file)]
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", log.name]
            try:
                result = subprocess.run(
                    [*command, f"http://{self._target.address}{SERVICE}{body.rpc}"],
                    capture_output=True,
                    text=True,
                    timeout=_LONGEST_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise BenchmarkError(f"h2load did not finish {count} requests in {_LONGEST_S} s") from None
            rows = [[int(column) for column in line.split()[:3]] for line in Path(log.name).read_text().splitlines()]
        if len(rows) != count or any(status != 200 for _, status, _ in rows):
            last = (result.stderr or result.stdout).strip().splitlines()[-1:]
            raise BenchmarkError(f"h2load: of {count} requests {len(rows)} ended, not all with HTTP 200: {last}")
        ends = [(begun + latency) / 1e6 for begun, _, latency in rows]
        return steady(ends, [latency / 1e6 for _, _, latency in rows], in_flight)
