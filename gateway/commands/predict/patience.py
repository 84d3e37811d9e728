"""How long a run waits for a server that is away or has too much to do."""

from __future__ import annotations

import time
from collections.abc import Callable

from tensorgate_client import InferenceError

_FIRST_S = 0.1
_LONGEST_S = 5.0


class Patience:
    """Waits longer from failure to failure; a success makes it new.

    Args:
        seconds: from the first failure on; 0 for none.
        tell: is told what is waited for, and None when it is over.
    """

    def __init__(self, seconds: float, tell: Callable[[str | None], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._until: float | None = None
        self._wait = _FIRST_S

    def __repr__(self) -> str:
        return f"<Patience seconds={self._seconds:g} waiting={self._until is not None}>"

    def after(self, error: InferenceError) -> None:
        """Wait a moment, since trying again may help.

        Raises:
            InferenceError: this one; it has not helped for long enough.
        """
        now = time.monotonic()
        if self._until is None:
            self._until, self._wait = now + self._seconds, _FIRST_S
        left = self._until - now
        if left <= 0:
            raise error
        self._tell(f"{error.code.name}, trying again for {left:.0f} s")
        time.sleep(min(self._wait, left))
        self._wait = min(self._wait * 2, _LONGEST_S)

    def reward(self) -> None:
        """There is an answer."""
        if self._until is not None:
            self._until = None
            self._tell(None)
