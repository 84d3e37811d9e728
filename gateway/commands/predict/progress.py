"""How far a run is: on a terminal a line that changes, elsewhere a line every ten seconds."""

from __future__ import annotations

import os
import sys
import time
from threading import Event, Thread
from types import TracebackType
from typing import Self

_ON_TERMINAL_S = 0.2
_IN_LOG_S = 10.0
_SILENT_S = 5.0  # without an answer, after which it is said
_BAR = 24  # characters
_COLUMNS = 80  # of a terminal that does not tell


class Progress:
    """Shows rows on stderr, from a thread of its own: it goes on while no answer comes.

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
        self._began = self._answered = time.monotonic()
        self._waiting: str | None = None
        self._drawn = 0
        self._over = Event()
        self._thread = Thread(target=self._run, name="tensorgate-progress", daemon=True)
        self.done = done
        self.failed = failed

    def __repr__(self) -> str:
        return f"<Progress done={self.done} failed={self.failed} total={self._total}>"

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if not self._quiet:
            self._thread.join()

    def reach(self, done: int, failed: int) -> None:
        """So many rows are done, and so many of them have failed."""
        self.done = done
        self.failed = failed
        self._answered = time.monotonic()

    def wait_for(self, what: str | None) -> None:
        """What the run is held up by; None when it goes on."""
        self._waiting = what

    @property
    def rate(self) -> float:
        """Rows a second, of this run."""
        return (self.done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def line(self) -> str:
        """All of it in words."""
        total = f"about {self._total:,}" if self._estimated else f"{self._total:,}"
        parts = [f"{self.done:,} of {total} rows", self._pace(), f"{self.failed:,} error{'s' * (self.failed != 1)}"]
        return ", ".join(part for part in parts if part)

    def _pace(self) -> str:
        silent = time.monotonic() - self._answered
        if self._waiting or silent > _SILENT_S:
            return self._waiting or f"no answer for {silent:.0f} s"
        if not self.done - self._before:
            return ""
        return f"{self.rate:,.0f} rows/s, {_clock((self._total - self.done) / self.rate)} left"

    def _run(self) -> None:
        if not self._terminal:
            while not self._over.wait(_IN_LOG_S):
                print(self.line(), file=sys.stderr, flush=True)
            return
        self._draw(self._fitting())
        while not self._over.wait(_ON_TERMINAL_S):
            self._draw(self._fitting())
        self._draw("")  # what follows takes the line's place
        self._draw("")

    def _draw(self, text: str) -> None:
        """Over what is drawn already, in characters that any terminal knows."""
        sys.stderr.write(f"\r{text:<{self._drawn}}")
        sys.stderr.flush()
        self._drawn = len(text)

    def _fitting(self) -> str:
        """The line and as much of a bar as the terminal has room for, since a longer line would stay behind."""
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
        except OSError:
            columns = _COLUMNS
        part, line = min(self.done / max(self._total, 1), 1.0), self.line()
        width = min(columns - len(f"100% [] {line}") - 1, _BAR)
        bar = f"[{'#' * round(part * width):<{width}}] " if width > 0 else ""
        return f"{part:4.0%} {bar}{line}"[: columns - 1]


def _clock(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
