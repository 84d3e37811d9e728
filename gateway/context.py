"""For whom a batch is executed, for backends that have it executed elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.batch import Batch


class BatchContext:
    """As `backends.base.Context` has it. Made on the event loop, before the batch begins."""

    __slots__ = ("_lock", "_present", "_requests", "_tell", "outputs", "traceparent")

    def __init__(self, batch: Batch) -> None:
        self._requests = batch.requests
        self._present = len(batch.requests)
        self._lock = Lock()
        self._tell: Callable[[], object] | None = None
        self.outputs: Sequence[str] = tuple(dict.fromkeys(name for r in batch.requests for name in r.outputs))
        self.traceparent = ""
        if any(request.stages.span for request in batch.requests):
            trace_id, span_id = batch.execution.span = random.getrandbits(128), random.getrandbits(64)
            self.traceparent = f"00-{trace_id:032x}-{span_id:016x}-01"

    @property
    def deadline(self) -> float:
        """When the last caller stops waiting (`time.perf_counter`)."""
        return max(request.deadline for request in self._requests)

    def on_abandoned(self, tell: Callable[[], object]) -> None:
        """Call `tell` when nobody waits any more."""
        with self._lock:
            self._tell, abandoned = tell, self._present <= 0
        if abandoned:
            tell()

    def leave(self) -> None:
        """One of the requests has nobody left who waits for it."""
        with self._lock:
            self._present -= 1
            tell = self._tell if self._present <= 0 else None
        if tell:
            tell()
