"""perf_analyzer, the load generator that Triton's makers measure with."""

from __future__ import annotations

import csv
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measured import Measured
from benchmarks.peers.servers import environment
from benchmarks.report import BenchmarkError

_WINDOWS = 3  # the fewest it takes
_LONGEST_S = 120


def measure(address: str, model: str, in_flight: int, seconds: float) -> Measured:
    """Throughput and latency of equal calls with 16 random floats `x`.

    Raises:
        BenchmarkError: it fails, as it also does when an answer is an error.
    """
    home = environment("perf")
    cuda = next(home.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as report:
        command = [home / "bin" / "perf_analyzer", "-m", model, "-i", "grpc", "-u", address, "--async"]
        command += ["--shape", "x:16", "--input-data", "random"]
        command += ["--concurrency-range", str(in_flight), "-f", report.name]
        # On a busy machine it would look for a stable figure for minutes: the rounds and their spread stand for that.
        command += ["-p", str(round(seconds / _WINDOWS * 1000)), "-r", str(_WINDOWS), "-s", "999"]
        result = subprocess.run(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": str(cuda)},
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        rows = list(csv.DictReader(Path(report.name).read_text().splitlines()))
    if result.returncode or not rows:
        raise BenchmarkError(f"perf_analyzer: {' '.join((result.stderr or result.stdout).split())[-300:]}")
    return Measured(float(rows[0]["Inferences/Second"]), float(rows[0]["p50 latency"]) / 1000)
