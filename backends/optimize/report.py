"""The report of a search: what was tried, on which machine, what came of it; as data and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from backends.optimize import choice
from backends.optimize.budget import Budget
from backends.optimize.results import Figures, Row, State
from backends.optimize.steps import Profile

_PACKAGES = ("torch", "onnxruntime", "torchao", "tensorrt-rtx-cu13", "ai-edge-litert", "litert-torch", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Attributes:
        cores: that the process may use.
        packages: versions by name, of those that are installed.
    """

    processor: str
    cores: int
    python: str
    packages: Mapping[str, str]

    @classmethod
    def this(cls) -> Machine:
        """This one."""
        packages = {name: found for name in _PACKAGES if (found := _version(name))}
        return cls(_processor(), len(os.sched_getaffinity(0)), platform.python_version(), packages)


@dataclass(frozen=True, slots=True)
class Run:
    """How a search was made.

    Attributes:
        recipe: the file's name.
        began: seconds since 1970.
        took_s: in all.
        budget: what the winner had to keep to.
        concurrency: callers at once, for latencies under load.
        unfinished: why it ended before its end, as "interrupted"; "" if it did not.
        planned: how many variants were to be tried.
    """

    recipe: str
    began: float
    took_s: float
    budget: Budget
    concurrency: int
    unfinished: str
    planned: int


@dataclass(frozen=True, slots=True)
class Report:
    """All there is to report.

    Attributes:
        profile: of the original; None if the search ended before.
        rows: in the order they were tried.
    """

    run: Run
    machine: Machine
    profile: Profile | None
    rows: Sequence[Row]

    @property
    def original(self) -> Row | None:
        """The original's row, if it was measured."""
        return next((row for row in self.rows if not row.steps and row.measured), None)

    @property
    def winner(self) -> Row | None:
        """The best row that keeps to the budget."""
        return choice.winner(self.rows, self.run.budget)

    @property
    def nearest(self) -> Row | None:
        """Without a winner, the row that comes nearest to the budget."""
        return None if self.winner else choice.nearest(self.rows, self.run.budget)

    @property
    def front(self) -> list[Row]:
        """The Pareto front."""
        return choice.front(self.rows)

    def of(self, *states: State) -> list[Row]:
        """The rows in some states, in order."""
        return [row for row in self.rows if row.state in states]

    @property
    def when(self) -> str:
        """When it began, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.run.began))


def fields(report: Report) -> dict[str, Any]:
    """The report as JSON has it; latencies are in milliseconds, sizes in bytes, durations in seconds."""
    run = asdict(report.run)
    run["budget"] = [condition.text for condition in report.run.budget]
    profile = asdict(report.profile) if report.profile else None
    if profile and report.profile:
        profile["operations"] = [operation._asdict() for operation in report.profile.operations]
    return {
        "run": run,
        "machine": asdict(report.machine),
        "profile": profile,
        "winner": report.winner.name if report.winner else None,
        "nearest": report.nearest.name if report.nearest else None,
        "front": [row.name for row in report.front],
        "variants": [_row(row, report.rows) for row in report.rows],
    }


def _row(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    found = asdict(row)
    found["remarks"] = choice.remarks(row, rows)
    if row.figures:
        found["figures"] |= _derived(row.figures)
    return found


def _derived(figures: Figures) -> dict[str, Any]:
    return {"bare_rows_per_s": figures.bare.rows_per_s} if figures.bare else {}


def as_json(report: Report) -> str:
    """The report as the text of a JSON file."""
    return json.dumps(fields(report), indent=2, allow_nan=False) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """As Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
