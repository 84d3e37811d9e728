"""The figures as a table and as a plot."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.commands.bench.load import Load, Measured
from gateway.commands.failure import CommandFailed
from gateway.commands.table import table

_PLOTS = (".png", ".svg", ".pdf")
_REASONS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """What a load led to; `offered_per_s` is None in a closed loop, where `in_flight` is set and not a mean."""

    in_flight: float
    offered_per_s: float | None
    requests_per_s: float
    rows_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    errors: int
    reasons: dict[str, int]


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
    )


def text(lines: Sequence[Line], flags: Namespace) -> str:
    """The table, how it was measured, and what went wrong."""
    heads = ["in flight", "requests/s", "rows/s", "p50 ms", "p90 ms", "p99 ms", "errors"]
    rows = [
        [f"{x.in_flight:g}", f"{x.requests_per_s:,.0f}", f"{x.rows_per_s:,.0f}"]
        + ["-" if ms is None else f"{ms:,.2f}" for ms in (x.p50_ms, x.p90_ms, x.p99_ms)]
        + [f"{x.errors:,}"]
        for x in lines
    ]
    if flags.rate:
        heads = ["offered/s", *heads]
        rows = [[f"{x.offered_per_s:g}", *row] for x, row in zip(lines, rows, strict=True)]
    loop = "open loop" if flags.rate else "closed loop"
    way = "one stream" if flags.stream else "a call each"
    size = f"{flags.rows} row{'s' * (flags.rows != 1)} a request"
    how = f"({size}, {loop}, {way}, {flags.seconds:g} s a line; the Python client's own time is in it)"
    reasons: Counter[str] = Counter()
    for x in lines:
        reasons.update(x.reasons)
    failed = [f"{count:,} times {reason}" for reason, count in reasons.most_common(_REASONS)]
    return "\n".join([table(heads, rows, left=0), how, *failed])


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
