"""The profile as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gateway.commands.table import table
from gateway.profile.runs import Measured

_LONGEST = 72  # of a name in the table; C++ and numpy have longer ones


@dataclass(frozen=True, slots=True)
class Profile:
    """A model, how it was run, and what was measured.

    Attributes:
        rows: of each run.
    """

    model: str
    version: int
    backend: str
    profiler: str
    rows: int
    measured: Measured


@dataclass(frozen=True, slots=True)
class Line:
    """An operator in all profiled runs together; `share_percent` is of these runs' time, `us_per_run` of `self_ms`."""

    operator: str
    calls: int
    total_ms: float
    self_ms: float
    share_percent: float
    us_per_run: float


def fields(profile: Profile) -> dict[str, Any]:
    """All there is, for JSON; durations of a run are those of the model alone, without the gateway."""
    described = {name: getattr(profile, name) for name in ("model", "version", "backend", "profiler", "rows")}
    measured = profile.measured
    times = {}
    for prefix, us in (("", measured.plain_us), ("profiled_", measured.profiled_us)):
        times[f"{prefix}p50_ms"], times[f"{prefix}p99_ms"] = (round(float(ms), 4) for ms in _percentiles(us))
    lines = sorted(_lines(measured), key=lambda line: -line.self_ms)
    outside = asdict(_outside(measured))
    del outside["operator"], outside["calls"], outside["total_ms"]
    return {
        **described,
        "runs": len(measured.profiled_us),
        **times,
        "operators": [asdict(line) for line in lines],
        "outside_operators": outside,
    }


def text(profile: Profile, top: int) -> str:
    """What was run and how long it took, in a line; then a line for each operator, most time first."""
    measured = profile.measured
    runs = len(measured.profiled_us)
    (p50, p99), (slower, slowest) = _percentiles(measured.plain_us), _percentiles(measured.profiled_us)
    head = (
        f"{profile.model} version {profile.version} on {profile.backend}, {runs:,} run{'s' * (runs != 1)} of "
        f"{profile.rows:,} row{'s' * (profile.rows != 1)}: p50 {p50:,.3f} ms, p99 {p99:,.3f} ms; "
        f"with {profile.profiler} {slower:,.3f} and {slowest:,.3f} ms"
    )
    lines = sorted(_lines(measured), key=lambda line: -line.self_ms)
    cells = [_cells(line) for line in lines[:top]]
    if rest := lines[top:]:
        cells.append(_cells(_sum(f"({len(rest)} more)", rest), total=False))
    if (outside := _outside(measured)).self_ms > 0:
        cells.append(_cells(outside, total=False))
    heads = ["operator", "calls", "total ms", "self ms", "share %", "us/run"]
    note = "(self, share, us/run: without the operators called in turn; the profiler's own work is in the whole)"
    return "\n".join([head, "", table(heads, cells, left=1), note])


def _percentiles(us: Any) -> tuple[float, float]:
    """Of microseconds, in milliseconds."""
    p50, p99 = np.percentile(us, (50, 99)) / 1000
    return float(p50), float(p99)


def _lines(measured: Measured) -> Iterator[Line]:
    for name, calls, total_us, self_us in measured.operations:
        yield _line(measured, name, calls, total_us, self_us)


def _line(measured: Measured, name: str, calls: int, total_us: float, self_us: float) -> Line:
    share = 100 * self_us / float(measured.profiled_us.sum())
    per_run = self_us / len(measured.profiled_us)
    return Line(name, calls, round(total_us / 1000, 3), round(self_us / 1000, 3), round(share, 1), round(per_run, 2))


def _outside(measured: Measured) -> Line:
    """What of the runs' time the profiler gave to no operator; none where operators ran side by side."""
    inside = sum(operation.self_us for operation in measured.operations)
    left = max(float(measured.profiled_us.sum()) - inside, 0.0)
    return _line(measured, "(outside operators)", 0, left, left)


def _sum(name: str, lines: list[Line]) -> Line:
    return Line(
        name,
        sum(line.calls for line in lines),
        0.0,
        sum(line.self_ms for line in lines),
        sum(line.share_percent for line in lines),
        sum(line.us_per_run for line in lines),
    )


def _cells(line: Line, *, total: bool = True) -> list[str]:
    name = line.operator if len(line.operator) <= _LONGEST else f"{line.operator[: _LONGEST - 3]}..."
    calls = f"{line.calls:,}" if line.calls else ""
    whole = f"{line.total_ms:,.2f}" if total else ""  # the totals of several operators may hold each other's
    return [name, calls, whole, f"{line.self_ms:,.2f}", f"{line.share_percent:.1f}", f"{line.us_per_run:,.1f}"]
