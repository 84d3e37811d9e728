"""What was measured, as one table and as JSON."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured import Measured
from benchmarks.models import KEPT
from benchmarks.report import aligned, machine, number, ratios, spread

REFERENCE, BARE = "triton", "bare"
BASES = (REFERENCE, BARE)
"""What the others are divided by."""

_LEGEND = (
    "native, grpcio: tensorgate on either transport; echo-grpcio: grpc.aio alone, bytes back; bare: ONNX "
    "Runtime in a loop; triton-queue: Triton with a time-out on its queue"
)
_REQUIREMENTS = Path(__file__).parent / "requirements"


@dataclass(frozen=True, slots=True)
class Series:
    """One contender under one load, in each of the rounds."""

    workload: str
    load: str
    contender: str
    rounds: Sequence[Measured]
    note: str = ""

    @property
    def rates(self) -> list[float]:
        """Answers per second."""
        return [measured.rate for measured in self.rounds]


class Results:
    """All that was measured so far, kept in two files of this run's own under .benchmarks/."""

    def __init__(self, head: str) -> None:
        self._head = head
        self._machine = machine()
        self._versions = _versions()
        self._series: list[Series] = []
        self._file = KEPT / f"peers-{time.strftime('%Y%m%d-%H%M%S')}"

    @property
    def any(self) -> bool:
        """Whether something has been measured."""
        return bool(self._series)

    def add(self, series: Sequence[Series]) -> None:
        """Keep these too."""
        self._series += series
        KEPT.mkdir(exist_ok=True)
        self._file.with_suffix(".txt").write_text(self.text())
        self._file.with_suffix(".json").write_text(json.dumps(self._described(), indent=1) + "\n")

    def text(self) -> str:
        """The table, with what it was measured on above it."""
        columns = ("workload", "load", "contender", "answers/s", "p50 ms", *(f"over {name}" for name in BASES), "note")
        rows = []
        for series in self._series:
            rates, p50 = spread(series.rates, 0), number([measured.p50_ms for measured in series.rounds], 2)
            over = [spread(values) if values else "-" for values in (self._over(series, base) for base in BASES)]
            rows.append((series.workload, series.load, series.contender, rates, p50, *over, series.note))
        versions = ", ".join(f"{name} {version}" for name, version in self._versions.items())
        return "\n".join((self._machine, versions, _LEGEND, self._head, "", *aligned(columns, rows), ""))

    def _over(self, series: Series, base: str) -> list[float]:
        """Round by round over another contender under the same load; empty for itself and where that answered none."""
        load = series.workload, series.load
        others = [one for one in self._series if (one.workload, one.load) == load and one.contender != series.contender]
        rates = next((one.rates for one in others if one.contender == base), [])
        return ratios(series.rates, rates) if rates and all(rates) else []

    def _described(self) -> dict[str, object]:
        results = [
            {
                "workload": series.workload,
                "load": series.load,
                "contender": series.contender,
                "answers_per_s": series.rates,
                "p50_ms": [None if math.isnan(one.p50_ms) else one.p50_ms for one in series.rounds],
                **{f"over_{base}": self._over(series, base) for base in BASES},
                "note": series.note,
            }
            for series in self._series
        ]
        return {"machine": self._machine, "versions": self._versions, "measured": self._head, "results": results}


def _versions() -> dict[str, str]:
    """Of the peers: what requirements/ pins to one release."""
    lines = "".join(file.read_text() for file in sorted(_REQUIREMENTS.glob("*.txt")))
    return dict(re.findall(r"(?m)^([\w\[\]-]+)==([\d.]+)(?=\s)", lines))
