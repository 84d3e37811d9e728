"""MiniLM on the bare runtime, in a loop without any server: what the gateway is measured against.

Runs as a process of its own: `Worker("benchmarks.bare")`. It computes while it answers a job and at no other time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from backends.base import ModelSource
from backends.onnxruntime_session import session_options
from benchmarks.models import MINILM, minilm_file, tokens
from benchmarks.worker import answer_jobs


def _session(file: Path) -> ort.InferenceSession:
    # The backend's own options: threads that spin on one side alone would decide the comparison.
    options = session_options(ModelSource(MINILM, 1, file.parent, file))
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Bare:
    """An ONNX Runtime session, and how fast it is."""

    def __init__(self) -> None:
        self._session = _session(minilm_file())

    def answer(self, length: int) -> dict[str, Any]:
        """The embedding of one row of `length` tokens."""
        return {"embedding": self._session.run(None, tokens(1, length))[0].tolist()}

    def measure(self, rows: int, length: int, seconds: float) -> dict[str, Any]:
        """Rows per second and milliseconds per call, with so many rows a call."""
        feed = tokens(rows, length)
        self._session.run(None, feed)  # what was idle wakes up
        durations: list[float] = []
        start = now = time.perf_counter()
        while now - start < seconds or len(durations) < 3:
            before = now
            self._session.run(None, feed)
            now = time.perf_counter()
            durations.append(now - before)
        return {"rate": rows * len(durations) / (now - start), "p50_ms": float(np.median(durations)) * 1000}


if __name__ == "__main__":
    bare = Bare()
    answer_jobs({"answer": bare.answer, "measure": bare.measure})
