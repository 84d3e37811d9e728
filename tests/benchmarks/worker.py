"""A process of its own for what must not share the benchmark's: it answers jobs, one line of JSON each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.report import BenchmarkError


class Worker:
    """A running `python -m MODULE ARGUMENTS`, idle between jobs; ends with its `with` block."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        # A session of its own: Ctrl-C is for the benchmark, which then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, job: str, **options: Any) -> dict[str, Any]:
        """What `job` returns.

        Raises:
            BenchmarkError: it raised, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"job": job, **options}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty answer says so as well
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchmarkError(f"{self._module} has ended: see its traceback above")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise BenchmarkError(f"{self._module}: {result['error']}")
        return result


def answer_jobs(jobs: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer the jobs on stdin until it closes, which it also does when the benchmark is killed."""
    for line in sys.stdin:
        options = json.loads(line)
        try:
            result = jobs[options.pop("job")](**options)
        except (BenchmarkError, OSError) as error:
            result = {"error": str(error)}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
