"""Gateways that end and come back while calls go on, behind nginx, behind Envoy, and with clients that balance."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.balancing import STREAMS, Balanced, Load
from support.calls import Gate, eventually, request
from support.commands import interrupted, segments, write
from support.server import connected

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_a_gateway_that_is_stopped(running: Balanced, gate: Gate) -> None:
    """On SIGTERM no call is lost or computed twice, also while a long one holds up the end; its successor gets some."""
    leaving, before = running.members[0], len(gate.begun())
    with Load(running) as load, connected(leaving.server, leaving.address) as direct:
        load.goes_on()
        held = direct.stub.ModelInfer.future(request("slow", {"x": np.float32([1])}), timeout=60)
        eventually(lambda: len(gate.begun()) > before)
        leaving.server.signal(signal.SIGTERM)
        leaving.server.wait_for_log("stopping")
        load.goes_on()
        assert not held.done()
        gate.open()
        assert held.result(60).raw_output_contents == [np.float32([1]).tobytes()]
        assert leaving.server.wait() == 0
        load.goes_on()
        leaving.restart()
        returned = leaving.executed
        eventually(lambda: leaving.executed > returned + STREAMS)
        load.goes_on()
    assert [str(error) for error in load.failed] == []
    assert {error.code for error in load.broken} <= {UNAVAILABLE}
    running.settle()
    assert load.executed() == load.answered


def test_a_gateway_that_is_killed(running: Balanced) -> None:
    """On SIGKILL no call is lost, each stream breaks once at most, and the gateway gets calls again when it is back."""
    dying, _ = running.members
    with Load(running) as load:
        load.goes_on()
        dying.server.kill()
        load.goes_on()
        dying.restart()
        returned = dying.executed
        eventually(lambda: dying.executed > returned + STREAMS)
        load.goes_on()
    assert [str(error) for error in load.failed] == []
    assert [error.code for error in load.broken] == [UNAVAILABLE] * len(load.broken)
    assert len(load.broken) <= STREAMS


@pytest.mark.parametrize("fleet", ["nginx", "envoy"], indirect=True)
def test_a_file_is_predicted_to_its_end(running: Balanced, tmp_path: Path) -> None:
    """`tensorgate predict` takes its rows to another gateway when the one that computes them is killed."""
    source, target = write(tmp_path / "in.npy", x=np.arange(9000, dtype=np.float32) + 0.5), tmp_path / "out.npy"
    command = ["predict", "moody", "--input", source, "--output", target, "--address", running.address, "--quiet"]
    killed = []

    def kill_the_busy_one() -> bool:
        if not killed and segments(target) == 3:  # the rest waits at the gate
            busy = max(running.members, key=lambda member: len(member.lines(model="moody", rpc="ModelStreamInfer")))
            busy.server.kill()
            killed.append(busy)
            (running.members[0].repository / "gate").touch()
        return False

    assert interrupted(signal.SIGCONT, kill_the_busy_one, *command) == (0, "")
    assert killed
    np.testing.assert_array_equal(np.load(target), np.repeat(np.arange(1.5, 9001, dtype=np.float32)[:, None], 1024, 1))
