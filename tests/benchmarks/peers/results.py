"""What was measured, as one table and as JSON."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measured import Measured
from benchmarks.models import KEPT
from benchmarks.report import aligned, machine, number, ratios, spread

REFERENCE, BARE = "triton", "bare"
BASES = (REFERENCE, BARE)
"""What the others are divided by."""

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
        self._versions = versions()
        self._series: list[Series] = []
        self._file = KEPT / f"peers-{time.strftime('%Y%m%d-%H%M%S')}"

    def add(self, series: Sequence[Series]) -> None:
        """Keep these too."""
        self._series += series
        KEPT.mkdir(exist_ok=True)
        self._file.with_suffix(".txt").write_text(self.text())
        self._file.with_suffix(".json").write_text(json.dumps(self._described(), indent=1) + "\n")

    def text(self) -> str:
        """The table, with what it was measured on above it."""
        columns = ("workload", "load", "contender", "answers/s", "p50 ms", *(f"over {name}" for name in BASES), "")
        rows = []
        for series in self._series:
            rates, p50 = spread(series.rates, 0), number([measured.p50_ms for measured in series.rounds], 2)
            over = [spread(values) if values else "-" for values in (self._over(series, base) for base in BASES)]
            rows.append((series.workload, series.load, series.contender, rates, p50, *over, series.note))
        versions = ", ".join(f"{name} {version}" for name, version in self._versions.items())
        return "\n".join((self._machine, versions, self._head, "", *aligned(columns, rows), ""))

    def _over(self, series: Series, base: str) -> list[float]:
        """Round by round over a contender under the same load; empty where that was not measured, and for itself."""
        load = series.workload, series.load
        found = [one.rates for one in self._series if (one.workload, one.load) == load and one.contender == base]
        return ratios(series.rates, found[0]) if found and series.contender != base else []

    def _described(self) -> dict[str, object]:
        results = [
            {**asdict(series), **{f"over_{base}": self._over(series, base) for base in BASES}}
            for series in self._series
        ]
        return {"machine": self._machine, "versions": self._versions, "measured": self._head, "results": results}


def versions() -> dict[str, str]:
    """Of the peers: what requirements/ pins."""
    lines = "".join(file.read_text() for file in sorted(_REQUIREMENTS.glob("*.txt")))
    return dict(re.findall(r"(?m)^([\w\[\]-]+)==(\S+)", lines))
