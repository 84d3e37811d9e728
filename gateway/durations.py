"""How long batches take, learnt from those that ran."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

from cachetools import LRUCache

_SAMPLES = 16
_TRUSTED_S = 1.0  # how long a measurement holds once nothing runs any more
_SHAPES = 256


@dataclass(slots=True)
class _Measured:
    """The latest durations of batches alike, in seconds, and how many more run at this moment."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    typical: float = 0.0
    at: float = -inf
    running: int = 0

    def add(self, seconds: float, now: float) -> None:
        self.samples.append(seconds)
        # The slowest tenth is left out: one hiccup, as a first execution may be, must not turn requests away.
        self.typical = sorted(self.samples)[int(0.9 * (len(self.samples) - 1))]
        self.at = now


class Durations:
    """Expected durations by a batch's shape and its rows, these to the power of two."""

    def __init__(self) -> None:
        self._by_shape: LRUCache[Hashable, dict[int, _Measured]] = LRUCache(_SHAPES)

    def started(self, shape: Hashable, rows: int) -> None:
        """Note that a batch runs."""
        self._of(shape, rows).running += 1

    def ended(self, shape: Hashable, rows: int, seconds: float | None, now: float) -> None:
        """Note that a batch has ended `now`, and how long it took unless it failed."""
        measured = self._of(shape, rows)
        measured.running = max(measured.running - 1, 0)  # it may have been forgotten meanwhile
        if seconds is not None:
            measured.add(seconds, now)

    def expected(self, shape: Hashable, rows: int, now: float) -> float:
        """Seconds that such a batch takes at least, by what was measured of it or of smaller ones.

        0 where nothing was measured lately, nor is at this moment: what is turned away is not measured, so a bad
        measurement would otherwise hold for ever.
        """
        by_size = self._by_shape.get(shape)
        if by_size is None:
            return 0.0
        for size in range(rows.bit_length(), 0, -1):
            measured = by_size.get(size)
            if measured is not None and (measured.running or now - measured.at < _TRUSTED_S):
                return measured.typical
        return 0.0

    def _of(self, shape: Hashable, rows: int) -> _Measured:
        by_size = self._by_shape.get(shape)
        if by_size is None:
            by_size = self._by_shape[shape] = {}
        return by_size.setdefault(rows.bit_length(), _Measured())
