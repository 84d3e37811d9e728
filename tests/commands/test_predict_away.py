"""`tensorgate predict`, and a server that goes away, or whose model becomes another."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import ExitStack

import numpy as np
import pytest
from support.calls import eventually
from support.commands import MOODY, SEGMENT_ROWS, add_models, hurried, interrupted, segments, tensorgate, write
from support.models import RepositoryBuilder
from support.server import serving


def test_the_server_goes_away(tmp_path):
    """When the server dies, the user is told how to go on, and a new server finishes what the old one began."""
    gate, target = tmp_path / "gate", tmp_path / "out.npy"
    repository = add_models(RepositoryBuilder(tmp_path / "models"), gate)
    rows = np.arange(9000, dtype=np.float32)
    rows[404], rows[666] = 0, 0
    command = ["predict", "moody", "--input", write(tmp_path / "in.npy", x=rows), "--output", target]
    with serving(repository.root) as first:

        def killed() -> bool:
            if segments(target) == 3:  # the next one stops at the gate
                first.server.kill()
                return True
            return False

        options = ("--address", first.address, "--quiet", "--retry-for-s", "0")
        code, errors = interrupted(signal.SIGCONT, killed, *command, *options)
    assert code == 3
    assert errors.splitlines() == [
        f"tensorgate: no server answers at {first.address} (--address HOST:PORT, --tls if it has TLS)",
        f"tensorgate: {3 * SEGMENT_ROWS:,} rows are kept in {target}.partial: "
        "the same command with --resume goes on from there",
    ]
    gate.touch()
    with serving(repository.root) as second:
        answer = tensorgate(*command, "--address", second.address, "--resume")
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_array_equal(np.load(target), np.repeat(rows[:, None] + 1, 1024, axis=1))


@pytest.fixture
def rows(tmp_path):
    """Rows of which the first ones get an answer from a gated `moody`."""
    return write(tmp_path / "in.npy", x=np.where(np.arange(9000) == 404, 0, np.arange(9000, dtype=np.float32)))


def test_the_server_comes_back(tmp_path, rows):
    """A server that is restarted in the middle of a run costs the user nothing but the time."""
    gate, target = tmp_path / "gate", tmp_path / "out.npy"
    repository = add_models(RepositoryBuilder(tmp_path / "models"), gate)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["predict", "moody", "--input", rows, "--output", target, "--address", f"127.0.0.1:{port}", "--quiet"]
    with serving(repository.root, "--port", port) as first:
        began = False

        def restarted() -> bool:
            nonlocal began
            if segments(target) == 3 and not began:
                first.server.kill()
                gate.touch()
                stack.enter_context(serving(repository.root, "--port", port))
                began = True
            return False

        with ExitStack() as stack:
            code, errors = interrupted(signal.SIGCONT, restarted, *command)
    assert (code, errors, began) == (1, f"tensorgate: 1 of 9,000 rows failed: {target}.errors.csv says why\n", True)
    got = np.load(target)
    np.testing.assert_array_equal(got[667:], np.repeat(np.arange(668, 9001, dtype=np.float32)[:, None], 1024, axis=1))


def test_a_version_that_is_gone(tmp_path):
    """A run keeps to the version that it began with; where that is not served any more, it says what can be done."""
    gate, target = tmp_path / "gate", tmp_path / "out.npy"
    repository = add_models(RepositoryBuilder(tmp_path / "models"), gate)
    command = ["predict", "moody", "--input", "", "--output", target, "--quiet"]
    with serving(repository.root, "--model-control", "explicit", "--load-model", "moody") as running:
        x = np.arange(12_000, dtype=np.float32) + 0.5  # more than the window behind those that wait at the gate
        command[3] = write(tmp_path / "more.npy", x=x)
        command += ["--address", running.address]

        def rolled() -> bool:
            if segments(target) == 3 and not (repository.root / "moody" / "2").exists():
                repository.add("moody", {"model.py": MOODY}, version=2)
                assert tensorgate("models", "load", "moody", "--address", running.address).returncode == 0
                gate.touch()
            return False

        gone = "is not found: this run began with version 1 of model 'moody': serve it again to go on, or begin anew"
        code, errors = interrupted(signal.SIGCONT, rolled, *command)
        assert (code, gone in errors) == (3, True), errors
        again = tensorgate(*command, "--resume")
        assert (again.returncode, gone in again.stderr) == (3, True)
        assert tensorgate(*command, "--restart").returncode == 0


def test_a_model_that_is_configured_differently(tmp_path, rows):
    """Rows of a model and of what has taken its place are not put into one file."""
    gate, target = tmp_path / "gate", tmp_path / "out.npy"
    repository = add_models(RepositoryBuilder(tmp_path / "models"), gate)
    command = ["predict", "moody", "--input", rows, "--output", target]
    with serving(repository.root) as first:
        interrupted(signal.SIGKILL, lambda: segments(target) == 3, *command, "--address", first.address)
    (repository.root / "moody" / "config.pbtxt").write_text("max_batch_size: 64\n")  # no gate
    with serving(repository.root) as second:
        answer = tensorgate(*command, "--address", second.address, "--resume")
    assert answer.returncode == 2
    assert "version 1 of model 'moody' is configured differently now; --restart begins anew" in answer.stderr


def test_silence_is_said(tmp_path):
    """While the server gives no answer the user reads that; a run that is killed without any is not in the way."""
    gate, target = tmp_path / "gate", tmp_path / "out.npy"
    repository = add_models(RepositoryBuilder(tmp_path / "models"), gate)
    held = write(tmp_path / "held.npy", x=np.arange(8000, 9000, dtype=np.float32))
    with serving(repository.root) as running:
        command = ["predict", "moody", "--input", held, "--output", target, "--address", running.address]
        manifest = tmp_path / "out.npy.partial" / "manifest.json"
        code, _ = interrupted(signal.SIGKILL, manifest.exists, *command)
        assert code == -signal.SIGKILL
        log = tmp_path / "log"
        with log.open("w") as file:
            process = subprocess.Popen([*hurried(log=0.1, silent=0.2), *map(str, command)], stderr=file)
            eventually(lambda: "0 of 1,000 rows, no answer for 0 s, 0 errors" in log.read_text())
            gate.touch()
            assert process.wait(60) == 0
    assert len(np.load(target)) == 1000
