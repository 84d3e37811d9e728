"""The gateway in a process of its own, as in production."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

_READY = re.compile(r"ready: gRPC on (\S+:\d+)")
_DYING_S = 0.5  # from a connection's end to the process's
_METRICS = re.compile(r"metrics on (http://\S+)")


class Running:
    """A server process; what it logs waits in memory, so that a full pipe never holds it up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._log: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.exit_code = -1
        self.metrics = ""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._log.put(line)
        self._log.put(None)

    def wait_until_ready(self) -> str:
        """The address it serves on; from then on `metrics` is the URL of its metrics.

        Raises:
            OSError: it does not start; the message is its own.
        """
        lines = []
        while (line := self._log.get()) is not None:
            lines.append(line)
            if found := _METRICS.search(line):
                self.metrics = found[1]
            if match := _READY.search(line):
                return match[1]
        raise OSError("".join(lines).strip().removeprefix("tensorgate: ") or "the server ended before it was ready")

    def wait(self) -> None:
        """Pass its log on until it ends or Ctrl-C."""
        try:
            while (line := self._log.get()) is not None:
                print(line, end="", file=sys.stderr)
        except KeyboardInterrupt:
            print()

    def ended(self) -> str:
        """How it ended by itself just now; "" if it runs."""
        try:
            code = self._process.wait(timeout=_DYING_S)
        except subprocess.TimeoutExpired:
            return ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the server {how}"

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self.exit_code = self._process.wait()


def ending_signals() -> list[signal.Signals]:
    """What ends a program, but for what its starter chose to ignore, as nohup does."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Running]:
    """`tensorgate serve` over a repository with further flags, ended afterwards, come what may."""
    # -P: a folder named like one of our packages must not get in the way.
    command = [sys.executable, "-P", "-m", "gateway", "serve"]
    command += ["--model-repository", str(repository), "--log-format", "human", *flags]
    with ExitStack() as ending:
        with _undisturbed():
            # A group of its own: Ctrl-C is for its starter, which then stops the server; two would cut requests off.
            process = subprocess.Popen(  # noqa: S603  # our own command
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
            )
            running = Running(process)
            ending.callback(running.stop)
        yield running


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back what would end the program: between its start and our taking note of it, the server would be lost."""
    caught: list[int] = []
    former = [(number, signal.signal(number, lambda number, _: caught.append(number))) for number in ending_signals()]
    try:
        yield
    finally:
        for number, handler in former:
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt
