"""What is asked of the contenders in closed loops, and which of them can answer it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.measured import Measured
from benchmarks.minilm import LENGTH
from benchmarks.models import Arrays, floats, tokens
from benchmarks.peers.results import BARE, REFERENCE, Series
from benchmarks.peers.servers import CACHED, IDENTITY, MINILM
from benchmarks.report import progress

OURS_AND_TRITON = (REFERENCE, "native", "grpcio")
_MANY = 150_000  # floats: 600 KB


@dataclass(frozen=True, slots=True)
class Workload:
    """Equal calls.

    Attributes:
        name: as in `ONLY=`.
        model: who is called.
        inputs: of each message.
        levels: how many calls are under way at once.
        contenders: who can answer, in the order of the table.
        messages: of each call; with more than one, calls are streams.
        analyzer: whether perf_analyzer sends them instead of h2load.
    """

    name: str
    model: str
    inputs: Arrays
    levels: Sequence[int]
    contenders: Sequence[str]
    messages: int = 1
    analyzer: bool = False


_FEW = {"x": floats()}
_ALL = (*OURS_AND_TRITON, "mlserver", "ray", "echo-grpcio")
MINILM_CALLS = Workload("minilm", MINILM, tokens(1, LENGTH), (1, 8, 16), (*OURS_AND_TRITON, BARE))
WORKLOADS = (
    Workload("identity", IDENTITY, _FEW, (1, 8, 64), _ALL),
    Workload("hits", CACHED, _FEW, (1, 8, 64), (*OURS_AND_TRITON, "mlserver")),
    MINILM_CALLS,
    Workload("large", IDENTITY, {"x": floats(_MANY)}, (1, 8), _ALL),
    Workload("streams", IDENTITY, _FEW, (1, 4), OURS_AND_TRITON, messages=1000),
    Workload("analyzer", IDENTITY, _FEW, (1, 8, 64), OURS_AND_TRITON, analyzer=True),
)


class Contender(Protocol):
    """Somebody who answers calls."""

    def measure(self, workload: Workload, in_flight: int, seconds: float) -> Measured:
        """Messages per second and the median latency of a call, for about so long.

        Raises:
            BenchmarkError: it answers wrongly, or not.
        """
        ...


def measure(workload: Workload, contenders: Mapping[str, Contender], rounds: int, seconds: float) -> list[Series]:
    """Round by round all levels, on each of them one contender after the other, to and fro."""
    names = [name for name in workload.contenders if name in contenders]
    taken: dict[tuple[int, str], list[Measured]] = defaultdict(list)
    for turn in range(rounds):
        for level in workload.levels:
            for name in names[:: -1 if turn % 2 else 1]:
                progress(f"{workload.name}: round {turn + 1} of {rounds}: {name}, {level} in flight")
                taken[level, name].append(contenders[name].measure(workload, level, seconds))
    note = f"messages/s; p50 of a stream of {workload.messages:,}" if workload.messages > 1 else ""
    return [
        Series(workload.name, str(level), name, taken[level, name], note) for level in workload.levels for name in names
    ]
