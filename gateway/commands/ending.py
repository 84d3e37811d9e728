"""Signals that end a command, so that it can say what it leaves behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came, where Ctrl-C raises a plain KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def how(interrupt: KeyboardInterrupt) -> tuple[str, int]:
    """What ended the command, and its exit code."""
    if isinstance(interrupt, Ended):
        return f"ended by {signal.Signals(interrupt.number).name}", 128 + interrupt.number
    return "interrupted", 128 + signal.SIGINT


@contextmanager
def endings() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended`, but for what the command's starter chose to ignore, as nohup does."""

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    ours = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if ours and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
