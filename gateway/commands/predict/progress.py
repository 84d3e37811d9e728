"""How far a run is: on a terminal a line that changes, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_ON_TERMINAL_S = 0.2
_IN_LOG_S = 10.0
_BAR = 24  # characters


class Progress:
    """Counts rows and shows them on stderr.

    Args:
        total: rows there are; with `estimated`, about.
        done: rows that an earlier run did.
        failed: how many of those failed.
    """

    def __init__(self, total: int, done: int, failed: int, *, estimated: bool, quiet: bool) -> None:
        self._total = total
        self._estimated = estimated
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._before = done
        self._began = self._shown = time.monotonic()
        self.done = done
        self.failed = failed

    def __repr__(self) -> str:
        return f"<Progress done={self.done} failed={self.failed} total={self._total}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal and not self._quiet:
            sys.stderr.write("\r\033[K")  # what follows takes the line's place
            sys.stderr.flush()

    def advance(self, rows: int, failed: int) -> None:
        """So many rows more are done."""
        self.done += rows
        self.failed += failed
        now = time.monotonic()
        if self._quiet or now - self._shown < (_ON_TERMINAL_S if self._terminal else _IN_LOG_S):
            return
        self._shown = now
        sys.stderr.write(f"\r{self._bar()}{self.line()}\033[K" if self._terminal else f"{self.line()}\n")
        sys.stderr.flush()

    @property
    def rate(self) -> float:
        """Rows a second, of this run."""
        return (self.done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def line(self) -> str:
        """All of it in words."""
        total = f"about {self._total:,}" if self._estimated else f"{self._total:,}"
        left = (self._total - self.done) / self.rate if self.rate else 0
        return (
            f"{self.done:,} of {total} rows, {self.rate:,.0f} rows/s, {_clock(left)} left, "
            f"{self.failed:,} error{'s' * (self.failed != 1)}"
        )

    def _bar(self) -> str:
        part = min(self.done / max(self._total, 1), 1.0)
        return f"{part:4.0%} [{'#' * round(part * _BAR):<{_BAR}}] "


def _clock(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
