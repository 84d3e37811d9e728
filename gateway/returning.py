"""Callers who send their next request as soon as they have been answered, as those in a loop do."""

from __future__ import annotations

from math import inf

_SURE = 3
"""Batches in a row whose callers came back in time before anybody waits for them."""

_MOST_BACK = 0.75
"""Share of a batch that has to come back. Requests that come by chance, at full load, make up half of it at most."""

_LONGEST_S = 0.01


class Returning:
    """Decides whether what waits should wait a moment longer, for the callers of the batch that has just ended.

    Without it callers in a loop stay split: those of one batch come back just after what waited has begun without them,
    so that two halves take turns for ever, each in batches of half the size. No queue delay mends that.
    """

    def __init__(self) -> None:
        self._answered = 0
        self._back = 0
        self._until = -inf
        self._in_a_row = 0

    def ended(self, rows: int, now: float, worth_s: float) -> None:
        """A batch has ended.

        Args:
            rows: that are being answered.
            now: seconds.
            worth_s: for how long its callers are worth waiting for.
        """
        came_back = self._answered > 0 and self._back >= _MOST_BACK * self._answered
        self._in_a_row = self._in_a_row + 1 if came_back else 0
        self._answered, self._back, self._until = rows, 0, now + min(worth_s, _LONGEST_S)

    def came(self, rows: int, now: float) -> None:
        """A request has come."""
        if now <= self._until:
            self._back += rows

    def waits_until(self, now: float) -> float:
        """Until when to wait for the others; `now` or earlier if it is time to go on."""
        return self._until if self._in_a_row >= _SURE and self._back < self._answered else now
