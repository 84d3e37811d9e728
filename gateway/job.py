"""A request between its arrival and its answer, as the batcher and its queue see it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from gateway.request import InferenceRequest

if TYPE_CHECKING:
    from gateway.batch import Batch, Outputs

Order: TypeAlias = tuple[int, bool, float, int]
"""Priority level, whether it waited too long, when it is due, and as the last resort which came first."""


class Receiver(Protocol):
    """Takes a job's outputs or error, once; an `asyncio.Future` does."""

    def done(self) -> bool:
        """Whether it has them, or wants none any more."""
        ...

    def set_result(self, outputs: Outputs, /) -> None:
        """The outputs."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """What there is instead."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """A request between its arrival and its answer. All times are the clock's seconds.

    Attributes:
        request: what to run.
        receiver: of the outputs.
        shape: equal for requests that may share a batch.
        level: of priority.
        deadline: when the last of its callers stops waiting.
        arrived: when it was queued.
        patience: when it has waited too long.
        hurry: when the first of its callers stops waiting, or has waited too long; it decides on the order.
        tried: whether it runs though it seems to come too late.
        order: its place while it is queued, else None.
        batch: the latest one it ran in.
    """

    request: InferenceRequest
    receiver: Receiver
    shape: Hashable
    level: int
    deadline: float
    arrived: float
    patience: float
    hurry: float
    delayed: bool = False
    tried: bool = False
    order: Order | None = None
    batch: Batch | None = None

    @property
    def expires(self) -> float:
        """When it is answered if it still waits."""
        return self.deadline if self.delayed else min(self.deadline, self.patience)


class TimeLeft(NamedTuple):
    """Seconds in which a request has to begin executing, and to be answered; infinite without a limit."""

    to_wait: float
    to_deadline: float
