"""The first thing a new user does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.server import TENSORGATE

_ROW = re.compile(r"^(digits_\w+) +(\w+) +(\d\.\d+) +([\d,]+) +([\d.]+) +([\d.]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """`tensorgate demo`, run in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    return subprocess.run([TENSORGATE, "demo"], cwd=folder, capture_output=True, text=True, timeout=170, check=False)


def test_the_demo_serves_a_trained_model_on_every_backend(demo: subprocess.CompletedProcess[str]) -> None:
    """A new user sees each backend classify real digits, nearly all of them right."""
    rows = {name: (backend, float(accuracy)) for name, backend, accuracy, *_ in _ROW.findall(demo.stdout)}
    assert {name: backend for name, (backend, _) in rows.items()} == {
        "digits_onnx": "onnxruntime",
        "digits_pt2": "torch",
        "digits_torchscript": "torch",
    }
    assert all(accuracy > 0.95 for _, accuracy in rows.values()), rows
    assert len({accuracy for _, accuracy in rows.values()}) == 1, "one network, yet its exports disagree"


def test_the_demo_shows_where_the_time_went(demo: subprocess.CompletedProcess[str]) -> None:
    """A new user sees how long each stage took, by the server's own metrics."""
    _, _, table = demo.stdout.partition("model                stage ")
    cells = [line.split()[-5:] for line in table.splitlines()[1:16]]
    stages = ["decode", "queue", "execute", "encode", "all"] * 3
    assert [row[-4] for row in cells] == stages
    assert all(0 <= float(p50) <= float(p95) <= float(p99) for *_, p50, p95, p99 in cells), table
    assert all(float(p99) > 0 for *_, stage, _, _, p99 in cells if stage in ("execute", "all")), table


def test_the_demo_ends_cleanly(demo: subprocess.CompletedProcess[str]) -> None:
    """A new user gets their prompt back without an error or a warning they would have to understand."""
    assert demo.returncode == 0
    assert demo.stdout.endswith("the server ended cleanly\n")
    assert demo.stderr == ""


def test_the_kept_server_can_be_called_until_ctrl_c(tmp_path: Path) -> None:
    """A user who keeps the demo running calls it with the command it prints, and stops it with Ctrl-C."""
    process = subprocess.Popen(
        [TENSORGATE, "demo", "--keep"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    watchdog = threading.Timer(170, process.terminate)
    watchdog.start()
    try:
        assert process.stdout is not None
        command = next(line for line in process.stdout if "classify" in line and line.startswith("    ")).split()
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        drawn, predicted = (line.split()[1:] for line in answer.stdout.splitlines())
        assert len(drawn) == 12
        assert sum(a == b for a, b in zip(drawn, predicted, strict=True)) >= 11
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        assert process.stdout.read().endswith("the server ended cleanly\n")
        assert process.wait() == 0
    finally:
        watchdog.cancel()
        process.terminate()  # a killed demo could not stop its server
        process.communicate()


def test_a_demo_ended_early_leaves_nothing_behind(tmp_path: Path) -> None:
    """A user may close the terminal while the demo's server starts: no server stays behind."""
    process = subprocess.Popen(
        [TENSORGATE, "demo"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert next(line for line in process.stdout if line.startswith("exported it"))
    os.killpg(process.pid, signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    left = subprocess.run(
        ["pgrep", "--session", str(process.pid), "--runstates", "DRST", "--list-full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert left.stdout == ""


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """A user without PyTorch learns what to install, in one line."""
    code = (
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest);"
        "from gateway.cli import main; main(['demo'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr == "tensorgate: the demo needs torch: pip install 'tensorgate[demo]'\n"
