"""Which batches are executed on the event loop itself: those that take less time than handing them to a thread."""

from __future__ import annotations

from collections.abc import Hashable

from gateway.batch import Execution

_SWIFT_NS = 50_000
"""What handing over to a thread and back costs at the least; on a busy machine it is many times as much."""

_SURE = 4
"""Swift executions in a row, on a thread, before the first one here."""

_MOST = 10_000
"""Swift executions that count. One here that is not takes one of them away for every microsecond: a model that is slow
now and then keeps to its thread."""

_KINDS = 1024


class Inlining:
    """Learns which batches are swift, by their shape and their rows, these to the power of two.

    What counts is the processor time of `execute`: putting a batch together and apart needs the interpreter's lock
    wherever it is done, and waiting for that or for the processor is not the model's fault.
    """

    def __init__(self) -> None:
        self._trust: dict[tuple[Hashable, int], int] = {}

    def allows(self, shape: Hashable, rows: int) -> bool:
        """Whether such a batch may be executed here."""
        return self._trust.get((shape, rows.bit_length()), 0) >= _SURE

    def executed(self, shape: Hashable, rows: int, execution: Execution) -> None:
        """Note how such a batch was executed, here or on a thread."""
        kind = shape, rows.bit_length()
        trust = self._trust.get(kind, 0)
        ns = execution.processor_ns
        if ns <= _SWIFT_NS:
            if len(self._trust) >= _KINDS:  # of endlessly many, none is worth more than another
                self._trust.clear()
            self._trust[kind] = min(trust + 1, _MOST)
        elif trust > 0:
            self._trust[kind] = trust - ns // 1000 if trust >= _SURE else 0
