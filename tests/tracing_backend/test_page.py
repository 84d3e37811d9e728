"""The page of a trace in the tracing backend, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.mlflow import TracingBackend
from support.node import with_packages
from support.traced_calls import BATCHES, Traces

FOLDER = Path(__file__).parent


def linked(page: str) -> list[str]:
    """The beginnings of the ids of the traces that a page has links to."""
    lines = page.splitlines()
    return [lines[index + 1] for index, line in enumerate(lines) if line == "Trace ID"]


@pytest.mark.skipif(
    not Path("/usr/bin/chromium").exists(),
    reason="no /usr/bin/chromium: apt-get install --no-install-recommends chromium",
)
def test_the_page_of_a_trace(backend: TracingBackend, traces: Traces, tmp_path: Path) -> None:
    """The page shows a request's stages on a timeline, and its link leads to the page of its batch with its members."""
    folder = with_packages(FOLDER)
    picture = tmp_path / "trace.png"
    batches = sorted(traces.named("batch"), key=lambda batch: batch.start_time_unix_nano)
    batch = batches[2 - BATCHES]  # it waited for two others
    member = next(member for member in traces.members if member.key in batch.links)
    command = ["node", "page.mjs", backend.page(member), picture, tmp_path / "profile"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    stages = traces.stages(member)
    assert [line for line in told["request"].splitlines() if line in stages][: len(stages)] == stages
    assert linked(told["request"]) == [batch.trace[:8]]
    assert sorted(linked(told["batch"])) == sorted(trace[:8] for trace, _ in batch.links)
    assert picture.stat().st_size < 200_000
    if wanted := os.environ.get("SCREENSHOT"):
        shutil.copy(picture, wanted)
