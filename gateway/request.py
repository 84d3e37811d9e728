"""A request on its way through the gateway, independent of the transport."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from backends.base import Array

if TYPE_CHECKING:
    from gateway.batch import Execution
    from gateway.tracing import Ids


@dataclass(slots=True)
class Stages:
    """When each stage of a request ended (`time.perf_counter_ns`); 0 while it has not.

    The stages, in order: cache, decode, queue, execute, encode. What the cache answers takes none of the others.

    Attributes:
        execution: of the latest batch it was in.
        outcome: of asking the cache: "hit", "miss", "joined" for one whose answer was being computed; "" if not asked.
        span: ids of its span, if it is sampled.
    """

    received: int = field(default_factory=time.perf_counter_ns)
    cache: int = 0
    decode: int = 0
    queue: int = 0
    execute: int = 0
    encode: int = 0
    execution: Execution | None = None
    outcome: str = ""
    span: Ids | None = None

    def executed(self) -> None:
        """Take over from the execution when it began and ended."""
        if self.execution:
            self.queue, self.execute = self.execution.started_ns, self.execution.finished_ns

    @property
    def passed(self) -> int:
        """How many have ended."""
        return sum(map(bool, (self.cache, self.decode, self.queue, self.execute, self.encode)))

    def __str__(self) -> str:
        """How long each stage took, in whole microseconds: "cache=0us decode=41us ..."."""
        before, parts = self.received, []
        for name in ("cache", "decode", "queue", "execute", "encode"):
            after = getattr(self, name) or before
            parts.append(f"{name}={(after - before) // 1000}us")
            before = after
        return " ".join(parts)


@dataclass(slots=True)
class InferenceRequest:
    """Inputs that fit the model's signature, and what the caller wants back.

    Attributes:
        id: the caller's, echoed.
        inputs: by name, with the shapes of the model's runtime; empty until they are decoded, as the next two.
        rows: how many the inputs have; 1 where the model does not batch.
        outputs: names the caller asked for, in that order.
        stages: time stamps.
        typed: whether to send the outputs as typed instead of raw contents.
        deadline: when the caller stops waiting (`time.perf_counter`), infinite if it does not say.
        timeout_s: how long the request may wait to be executed, infinite if the caller does not say.
        priority: as the caller sent it, 1 being the most urgent; 0 if it did not.
        windowed: whether a stream's window bounds it, so that no queue has to.
        unordered: whether a stream may answer it before those that came earlier.
        shape: equal for requests that may share a batch; None while it is not known.
    """

    id: str
    inputs: dict[str, Array]
    rows: int
    outputs: tuple[str, ...]
    stages: Stages = field(default_factory=Stages)
    typed: bool = False
    deadline: float = inf
    timeout_s: float = inf
    priority: int = 0
    windowed: bool = False
    unordered: bool = False
    shape: Hashable = None
