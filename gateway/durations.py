"""How long batches take, learnt from those that ran."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from cachetools import LRUCache

_SAMPLES = 16
_TRUSTED_S = 1.0
_SHAPES = 256


@dataclass(slots=True)
class _Measured:
    """The latest durations of batches alike, in seconds."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    typical: float = 0.0
    at: float = 0.0

    def add(self, seconds: float, now: float) -> None:
        self.samples.append(seconds)
        # The slowest tenth is left out: one hiccup, as a first execution may be, must not turn requests away.
        self.typical = sorted(self.samples)[int(0.9 * (len(self.samples) - 1))]
        self.at = now


class Durations:
    """Expected durations by a batch's shape and its rows, these to the power of two."""

    def __init__(self) -> None:
        self._by_shape: LRUCache[Hashable, dict[int, _Measured]] = LRUCache(_SHAPES)

    def add(self, shape: Hashable, rows: int, seconds: float, now: float) -> None:
        """Note that a batch took `seconds` and ended `now`."""
        by_size = self._by_shape.setdefault(shape, {})
        by_size.setdefault(rows.bit_length(), _Measured()).add(seconds, now)

    def expected(self, shape: Hashable, rows: int, now: float) -> float:
        """Seconds that such a batch takes at least, by what was measured of it or of smaller ones.

        0 where nothing was measured lately: what is turned away is not measured either, so a bad measurement would
        otherwise hold for ever.
        """
        by_size = self._by_shape.get(shape)
        if by_size is None:
            return 0.0
        for size in range(rows.bit_length(), 0, -1):
            measured = by_size.get(size)
            if measured is not None and now - measured.at < _TRUSTED_S:
                return measured.typical
        return 0.0
