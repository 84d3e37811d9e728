"""How long batches take, learnt from those that ran."""

from __future__ import annotations

from collections.abc import Hashable
from math import inf

_NEWEST = 1 / 8
"""What the latest batch counts for, against all before it."""

_SURPRISE = 2.0
"""Times as long, or as short, as expected: once it is a hiccup, twice in a row what was known was wrong."""

_LEAST_S = 1e-9
"""What no clock can tell from nothing."""

_DOUBT_S, _MOST_DOUBT_S = 1.0, 60.0
_SHAPES = 256


class _Measured:
    """Durations of batches of one shape: a line over their rows, fitted by least squares that forget, and a spread.

    All sizes share it, since what makes one of them slow, as a busy machine does, makes the others slow.
    """

    def __init__(self) -> None:
        self.doubt_s, self.doubted_at = _DOUBT_S, -inf
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._surprised = False
        self._rows = self._seconds = self._variance = self._covariance = self.spread = 0.0

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Note how long a batch took."""
        if self._count:
            seconds = self._plausible(rows, seconds)
        else:
            self.doubted_at = max(self.doubted_at, now)
        self._count += 1
        weight = max(_NEWEST, 1 / self._count)
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += weight * more_rows
        self._seconds += weight * more_seconds
        self._variance = (1 - weight) * (self._variance + weight * more_rows**2)
        self._covariance = (1 - weight) * (self._covariance + weight * more_rows * more_seconds)

    def _plausible(self, rows: int, seconds: float) -> float:
        """What to count of a measurement; starts anew where it belies what was known."""
        expected = self.at(rows)
        surprising = not expected / _SURPRISE <= seconds <= expected * _SURPRISE
        if surprising and (self._surprised or self._count == 1):
            self.doubt_s = _DOUBT_S
            self._begin()
            return seconds
        if surprising:
            self.doubted_at = -inf  # to find out
        self._surprised = surprising
        counted = min(max(seconds, expected / _SURPRISE), expected * _SURPRISE)
        self.spread += _NEWEST * (abs(counted - expected) / expected - self.spread)
        return counted

    def at(self, rows: int) -> float:
        """Expected seconds of a batch of so many rows: more rows never take less, nor more than in proportion."""
        proportional = self._seconds / self._rows
        if self._variance > 0:
            slope = min(max(self._covariance / self._variance, 0.0), proportional)
        else:  # one size is known: say what another takes at least
            slope = proportional if rows < self._rows else 0.0
        return self._seconds + slope * (rows - self._rows)


class Durations:
    """Expected durations of batches by their shape and rows."""

    def __init__(self) -> None:
        self._by_shape: dict[Hashable, _Measured] = {}

    def add(self, shape: Hashable, rows: int, seconds: float, now: float) -> None:
        """Note that a batch took `seconds` and ended `now`."""
        measured = self._by_shape.get(shape)
        if measured is None:
            if len(self._by_shape) >= _SHAPES:  # of endlessly many, none is worth more than another
                self._by_shape.clear()
            measured = self._by_shape[shape] = _Measured()
        measured.add(max(rows, 1), max(seconds, _LEAST_S), now)

    def expected(self, shape: Hashable, rows: int, *, cautious: bool = False) -> float:
        """Seconds that such a batch takes; with caution, also those by which it is likely to take longer.

        0 where nothing was measured.
        """
        measured = self._by_shape.get(shape)
        if measured is None:
            return 0.0
        expected = measured.at(rows)
        return expected * (1 + measured.spread) if cautious else expected

    def doubtful(self, shape: Hashable, now: float) -> bool:
        """Whether to try a request in spite of what is expected; if so, not again for some time.

        What is turned away is not measured: without a try now and then, a bad measurement would hold for ever. Tries
        become rare while they confirm it.
        """
        measured = self._by_shape.get(shape)
        if measured is None or now - measured.doubted_at < measured.doubt_s:
            return False
        measured.doubted_at = now
        measured.doubt_s = min(2 * measured.doubt_s, _MOST_DOUBT_S)
        return True
