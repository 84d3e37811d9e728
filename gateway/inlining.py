"""Which batches are executed on the event loop itself: those that take less time than handing them to a thread."""

from __future__ import annotations

from collections.abc import Hashable

_SWIFT_NS, _EACH_NS = 100_000, 10_000
"""What a batch may take all in all: not much more than handing it to a thread and back; and each further request of it,
whose putting in and taking out needs the interpreter's lock wherever it is done."""

_SURE = 4
"""Swift executions in a row, on a thread, before the first one here."""

_MOST = 10_000
"""Swift executions that count. A slow one on the event loop takes one of them away for every 10 us that it took too
long: a model that is slow now and then keeps to its thread."""

_AWAY_NS = 10_000
_KINDS = 1024


class Inlining:
    """Learns which batches are swift, by their shape and their rows, these to the power of two."""

    def __init__(self) -> None:
        self._trust: dict[tuple[Hashable, int], int] = {}

    def allows(self, shape: Hashable, rows: int) -> bool:
        """Whether such a batch may be executed here."""
        return self._trust.get((shape, rows.bit_length()), 0) >= _SURE

    def executed(self, shape: Hashable, rows: int, requests: int, busy_ns: int) -> None:
        """Note how long such a batch, of so many requests, kept its thread busy, this one or another."""
        kind = shape, rows.bit_length()
        trust = self._trust.get(kind, 0)
        if trust == 0 and len(self._trust) >= _KINDS:
            return  # of endlessly many, the later ones keep to their thread
        excess = busy_ns - _SWIFT_NS - _EACH_NS * requests
        if excess <= 0:
            self._trust[kind] = min(trust + 1, _MOST)
        elif trust >= _SURE:  # it was executed here
            self._trust[kind] = trust - 1 - excess // _AWAY_NS
        else:  # much of it may have been waiting: not every system tells a thread's processor time well
            self._trust[kind] = min(trust, 0)
