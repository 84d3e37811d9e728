"""How figures look: tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version

_LIVE = sys.stderr.isatty()


class BenchmarkError(Exception):
    """What stops a benchmark; the message is one line that says what to do."""


def say(text: str = "") -> None:
    """Print a line of the report."""
    progress("")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    """Show what is being measured: one line that changes on a terminal, a line each in a log."""
    if _LIVE:
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def table(measured: str, aim: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table under what it measures and what is aimed at."""
    say()
    say(measured)
    say(f"aim: {aim}")
    for line in aligned(columns, rows):
        say(line)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    cells = (columns, ["-" * width for width in widths], *rows)
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def machine() -> str:
    """What measures, in a line: its size, its software and how busy it is."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "numpy", "onnxruntime"))
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}, load average {load:.1f}"


def number(values: Sequence[float], digits: int = 0) -> str:
    """The median, as "1,234"; "-" where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return f"{statistics.median(known):,.{digits}f}" if known else "-"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median with the least and the greatest, as "0.97 (0.95-0.99)"."""
    return f"{number(values, digits)} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round, one contender divided by the other."""
    return [a / b for a, b in zip(over, under, strict=True)]


def median_range(values: Sequence[float], digits: int = 3) -> str:
    """Where the true median lies with about 95 % certainty, by the sign test; "-" for fewer values than that takes."""
    ordered, count = sorted(values), len(values)
    reach = round(count / 2 - 0.98 * count**0.5)  # rank of the lower bound, counted from 1
    if reach < 1:
        return "-"
    return f"{ordered[reach - 1]:.{digits}f}-{ordered[-reach]:.{digits}f}"
