"""How long batches take, learnt from those that ran."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

_SAMPLES = 3
_DOUBT_S, _MOST_DOUBT_S = 1.0, 60.0
_SHAPES = 256


@dataclass(slots=True)
class _Measured:
    """The latest durations of batches alike, in seconds, and when to doubt them."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    least: float = inf
    most: float = 0.0
    doubted_at: float = -inf
    doubt_s: float = _DOUBT_S

    def add(self, seconds: float, now: float) -> None:
        self.samples.append(seconds)
        least = min(self.samples)
        if least < self.least / 2:  # what was known was wrong
            self.doubt_s = _DOUBT_S
        if self.doubted_at == -inf:
            self.doubted_at = now
        self.least, self.most = least, max(self.samples)


class Durations:
    """Expected durations by a batch's shape and its rows, these to the power of two."""

    def __init__(self) -> None:
        self._by_shape: dict[Hashable, dict[int, _Measured]] = {}

    def add(self, shape: Hashable, rows: int, seconds: float, now: float) -> None:
        """Note that a batch took `seconds` and ended `now`."""
        by_size = self._by_shape.get(shape)
        if by_size is None:
            if len(self._by_shape) >= _SHAPES:  # of endlessly many, none is worth more than another
                self._by_shape.clear()
            by_size = self._by_shape[shape] = {}
        measured = by_size.get(rows.bit_length())
        if measured is None:
            measured = by_size[rows.bit_length()] = _Measured()
        measured.add(seconds, now)

    def expected(self, shape: Hashable, rows: int, *, cautious: bool = False) -> float:
        """Seconds that such a batch takes at least: the least of its latest measurements, or of smaller batches'.

        One hiccup, as a first execution may be, must not turn requests away. Where there is other work to do instead,
        caution is better: the most of the latest measurements. 0 where nothing was measured.
        """
        measured = self._nearest(shape, rows)
        if measured is None:
            return 0.0
        return measured.most if cautious else measured.least

    def doubtful(self, shape: Hashable, rows: int, now: float) -> bool:
        """Whether to try a request in spite of what is expected; if so, not again for some time.

        What is turned away is not measured: without a try now and then, a bad measurement would hold for ever. Tries
        become rare while they confirm it.
        """
        measured = self._nearest(shape, rows)
        if measured is None or now - measured.doubted_at < measured.doubt_s:
            return False
        measured.doubted_at = now
        measured.doubt_s = min(2 * measured.doubt_s, _MOST_DOUBT_S)
        return True

    def _nearest(self, shape: Hashable, rows: int) -> _Measured | None:
        by_size = self._by_shape.get(shape)
        if by_size:
            for size in range(rows.bit_length(), 0, -1):
                if size in by_size:
                    return by_size[size]
        return None
