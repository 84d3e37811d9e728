"""How busy the machine is, from /proc as Triton reads it: what it says of processors and memory."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import NamedTuple

_IDLE = slice(3, 5)
"""Idle, and waiting for devices: the others of the first eight columns of /proc/stat are work."""

_LEAST_TICKS = 10
"""Of all processors together. Over fewer, a share says nothing: two scrapes at once get the same one."""


class Memory(NamedTuple):
    """Bytes of the machine's memory; what could be freed at once does not count as used."""

    total: int
    used: int


class Machine:
    """What /proc says; zeros where there is none."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lock = Lock()
        self._ticks = self._read_ticks()
        self._utilization = 0.0

    def utilization(self) -> float:
        """Share of the processors' time that was spent working, 0 to 1, since it was asked before."""
        with self._lock:
            all_now, idle_now = self._read_ticks()
            passed, idle = all_now - self._ticks[0], idle_now - self._ticks[1]
            if passed >= _LEAST_TICKS:
                self._ticks = all_now, idle_now
                self._utilization = min(max(1 - idle / passed, 0.0), 1.0)
            return self._utilization

    def memory(self) -> Memory:
        """At this moment."""
        lines = (line.split() for line in self._lines("meminfo"))
        kib = {words[0]: int(words[1]) for words in lines if len(words) > 1}
        total = kib.get("MemTotal:", 0)
        return Memory(total * 1024, (total - kib.get("MemAvailable:", total)) * 1024)

    def _read_ticks(self) -> tuple[int, int]:
        """Of all processors since they started: altogether, and idle."""
        ticks = [int(word) for line in self._lines("stat")[:1] for word in line.split()[1:9]]
        return sum(ticks), sum(ticks[_IDLE])

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text().splitlines()
        except OSError:  # not Linux
            return []
