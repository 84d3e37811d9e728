"""What is known of each variant: the rows of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from backends.base import Array
from backends.optimize.scores import Agreement, Call, Estimate, Evaluation
from backends.optimize.timing import Bare, Batching, Latency
from backends.optimize.variant import Artifact

_ROUNDING = 1e-4  # of a score: whoever compares similarities finds less between any two runtimes


class State(StrEnum):
    """How far a variant came."""

    MEASURED = "measured"  # served by the gateway, and in the repository
    NETWORK = "network"  # a step on the way: no file yet
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Served:
    """A variant through the gateway, in a server process of its own.

    Attributes:
        alone: of requests of one row, one after the other.
        loaded: likewise with `in_flight` callers at once, so that batches form.
        rows_per_s: of those callers together.
        memory_bytes: the most that the server process ever held, with the runtime, the model and these requests.
    """

    alone: Latency
    loaded: Latency
    in_flight: int
    rows_per_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured of a variant; of a network that is no file yet, only how good it is.

    Attributes:
        accuracy: the score.
        drop: how far it is below the original's.
        agreement: with the original's outputs, by output; None where they cannot be compared.
        size_bytes: of its files on disk.
    """

    accuracy: Estimate
    drop: Estimate
    agreement: Mapping[str, Agreement] | None
    size_bytes: int = 0
    served: Served | None = None
    bare: Bare | None = None
    batching: Batching | None = None

    @property
    def less_accurate(self) -> bool:
        """Whether the drop is more than chance and more than the rounding of floats."""
        return self.drop.low is not None and self.drop.low > 0 and self.drop.value > _ROUNDING

    def of(self, quantity: str) -> float:
        """What a budget's condition is about, in its own unit."""
        if quantity in ("accuracy", "drop"):
            estimate: Estimate = getattr(self, quantity)
            return estimate.value
        if quantity == "size":
            return float(self.size_bytes)
        if self.served is None:
            raise ValueError(f"{quantity} of what was not served")
        if quantity == "memory":
            return float(self.served.memory_bytes)
        if quantity == "throughput":
            return self.served.rows_per_s
        ms: float = getattr(self.served.loaded, f"{quantity}_ms")
        return ms


@dataclass(frozen=True, slots=True)
class Row:
    """A variant, or a technique that cannot be used at all.

    Attributes:
        name: the variant's, also the model's in the repository.
        steps: the techniques it went through.
        reason: why it failed or was skipped.
        seconds: that it took to make and measure.
        backend: that serves it.
    """

    name: str
    steps: tuple[str, ...]
    state: State
    reason: str = ""
    figures: Figures | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    backend: str = ""

    @property
    def measured(self) -> Figures | None:
        """Its figures if it was served."""
        return self.figures if self.state is State.MEASURED else None


class Gateway(Protocol):
    """Writes variants into a model repository and measures them as they are served from it."""

    def add(self, name: str, artifact: Artifact, batching: Batching) -> int:
        """Write an entry; the bytes of its model files."""
        ...

    def remove(self, name: str) -> None:
        """Take an entry away; nothing happens if there is none."""
        ...

    def measure(
        self, name: str, rows: Mapping[str, Array], evaluate: Callable[[Call], Evaluation]
    ) -> tuple[Evaluation, Served]:
        """Serve an entry by itself, evaluate it through a client, then measure its latencies.

        Args:
            name: of the entry.
            rows: that requests are made of, one each.
            evaluate: to be given what calls the served variant.

        Raises:
            StepFailed: it does not load, or fails to answer.
        """
        ...
