"""What `make instructions` counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.counted import lay_out

TESTS = Path(__file__).parents[1]


def test_the_requests_to_count_are_answered(tmp_path: Path) -> None:
    """Whoever counts instructions counts those of requests that the gateway answers, each of them."""
    lay_out(tmp_path)
    command = [sys.executable, "-m", "benchmarks.counted", tmp_path, "8", "16"]
    run = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=90, check=False)
    assert run.returncode == 0, run.stderr
