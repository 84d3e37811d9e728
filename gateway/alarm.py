"""A timer that is only ever set earlier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

_TICK_S = 0.001
"""The shortest timer: uvloop counts in milliseconds, and would spin on one that it rounds down to nothing."""


class Alarm:
    """Calls back at the earliest of the moments that it was set to since the last time.

    Args:
        loop: the running one.
        ring: what to call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf

    def set(self, at: float, now: float) -> None:
        """Ring at that moment, or earlier if that was wanted before; both in the same clock's seconds."""
        if at >= self._at:
            return
        if self._timer:
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_later(max(at - now, _TICK_S), self._rings)

    def cancel(self) -> None:
        """Ring no more."""
        if self._timer:
            self._timer.cancel()

    def _rings(self) -> None:
        self._timer, self._at = None, inf
        self._ring()
