"""Servers that take turns: all are up, and all but the one that is measured are stopped, with all their processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SETTLE_S = 0.2  # for the timers that came due meanwhile
_END_S = 20


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:  # grows as it goes
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # a thread that has ended
                found += map(int, file.read_text().split())
    return found


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def halt(pid: int) -> None:
    """No processor time for it until its turn."""
    _signal(_family(pid), signal.SIGSTOP)


@contextmanager
def turn(pid: int) -> Iterator[None]:
    """It runs inside, and is halted before and after."""
    _signal(_family(pid), signal.SIGCONT)
    time.sleep(_SETTLE_S)
    yield
    halt(pid)


def end(pid: int) -> None:
    """Ask it to end and give it time to clean up; then end whatever is left of it."""
    family = _family(pid)
    _signal(family, signal.SIGCONT)
    _signal([pid], signal.SIGTERM)
    patience = time.monotonic() + _END_S
    while time.monotonic() < patience and not _ended(pid):
        time.sleep(0.05)
    _signal(family, signal.SIGKILL)


def _ended(pid: int) -> bool:
    """Whether only its exit code is left, or not even that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
