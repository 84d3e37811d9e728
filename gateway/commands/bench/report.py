"""The figures as a table and as a plot."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.commands.bench.load import Load, Measured
from gateway.commands.failure import CommandFailed

_PLOTS = (".png", ".svg", ".pdf")
_REASONS = 3
_HEADS = ("offered/s", "in flight", "requests/s", "rows/s", "p50 ms", "p90 ms", "p99 ms", "errors")
_WIDTH = 8  # characters of a column, or more
_KEPT_UP = 0.9


@dataclass(frozen=True, slots=True)
class Line:
    """What a load led to; `offered_per_s` is None in a closed loop, where `in_flight` is set and not a mean.

    Attributes:
        sent_per_s: below `offered_per_s` where the client could not follow.
        unanswered: requests that were under way at the end.
    """

    in_flight: float
    offered_per_s: float | None
    requests_per_s: float
    rows_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    errors: int
    reasons: dict[str, int]
    sent_per_s: float
    unanswered: int


def line(load: Load, measured: Measured, *, rows: int, seconds: float) -> Line:
    """The figures of one load."""
    latencies = np.array(measured.latencies)
    per_s = len(latencies) / seconds
    p50, p90, p99 = (
        [round(float(ms), 3) for ms in np.percentile(latencies * 1000, (50, 90, 99))] if len(latencies) else [None] * 3
    )
    return Line(
        in_flight=load.in_flight or round(float(latencies.sum()) / seconds, 1),  # Little's law
        offered_per_s=load.rate or None,
        requests_per_s=round(per_s, 1),
        rows_per_s=round(per_s * rows, 1),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        errors=measured.errors.total(),
        reasons=dict(measured.errors.most_common(_REASONS)),
        sent_per_s=round(measured.sent / seconds, 1),
        unanswered=measured.unanswered,
    )


def head(flags: Namespace) -> str:
    """The names of the columns."""
    return _aligned(_HEADS, flags)


def row(line: Line, flags: Namespace) -> str:
    """A line of the table."""
    times = ["-" if ms is None else f"{ms:,.2f}" for ms in (line.p50_ms, line.p90_ms, line.p99_ms)]
    rates = [f"{line.requests_per_s:,.0f}", f"{line.rows_per_s:,.0f}"]
    cells = [f"{line.offered_per_s or 0:g}", f"{line.in_flight:g}", *rates, *times, f"{line.errors:,}"]
    return _aligned(cells, flags)


def _aligned(cells: Sequence[str], flags: Namespace) -> str:
    """In columns that are wide enough for most, since a line is shown before the others are known."""
    columns = [cell.rjust(max(len(name), _WIDTH)) for name, cell in zip(_HEADS, cells, strict=True)]
    return "  ".join(columns if flags.rate else columns[1:])


def notes(lines: Sequence[Line], flags: Namespace) -> str:
    """How it was measured, and what went wrong."""
    loop = "open loop" if flags.rate else "closed loop"
    way = "one stream" if flags.stream else "a call each"
    size = f"{flags.rows} row{'s' * (flags.rows != 1)} a request"
    how = f"({size}, {loop}, {way}, {flags.seconds:g} s a line; the Python client's own time is in it)"
    reasons: Counter[str] = Counter()
    for x in lines:
        reasons.update(x.reasons)
    failed = [f"{count:,} times {reason}" for reason, count in reasons.most_common(_REASONS)]
    return "\n".join([how, *failed, *(note for x in lines for note in _doubts(x, flags))])


def _doubts(line: Line, flags: Namespace) -> Iterator[str]:
    """Why a line does not say what it seems to."""
    load = f"{line.offered_per_s:g} requests/s" if line.offered_per_s else f"{line.in_flight:g} in flight"
    if line.offered_per_s and line.sent_per_s < _KEPT_UP * line.offered_per_s:
        yield f"{load}: only {line.sent_per_s:,.0f}/s could be sent: this client, or the server, does no more"
    if line.p50_ms is None and not line.errors:
        yield f"{load}: none of {line.unanswered:,} requests was answered within {flags.seconds:g} s: raise --seconds"


def check_plot(path: Path) -> None:
    """Whether a plot can be drawn, before anything is measured.

    Raises:
        CommandFailed: it cannot.
    """
    if path.suffix.lower() not in _PLOTS:
        raise CommandFailed(f"--plot: expected {', '.join(_PLOTS)}, got '{path.suffix}': {path}")
    if not path.parent.is_dir():
        raise CommandFailed(f"--plot: no such folder: {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandFailed("--plot needs matplotlib: pip install 'tensorgate[plot]'")


def plot(path: Path, model: str, lines: Sequence[Line]) -> None:
    """Latency over throughput, a point for each line."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and may be missing

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    answered = [x for x in lines if x.p50_ms is not None]
    rates = [x.requests_per_s for x in answered]
    for name in ("p50_ms", "p90_ms", "p99_ms"):
        axes.plot(rates, [getattr(x, name) for x in answered], marker="o", label=name.removesuffix("_ms"))
    for x in answered:
        axes.annotate(f"{x.in_flight:g}", (x.requests_per_s, x.p50_ms), xytext=(4, -12), textcoords="offset points")
    axes.set(xlabel="requests/s", ylabel="ms", title=f"{model}: latency over throughput, by requests in flight")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path)
