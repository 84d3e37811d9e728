"""The gateway in a process of its own, as in production."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READY = re.compile(r"ready: gRPC on (\S+):(\d+)")


class Running:
    """A server that is ready."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = process
        self.exit_code = -1

    def wait(self) -> None:
        """Pass its log on until it ends or Ctrl-C."""
        try:
            for line in self._process.stderr or ():
                print(line, end="", file=sys.stderr)
        except KeyboardInterrupt:
            print()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.communicate()
        self.exit_code = self._process.returncode


@contextmanager
def serving(repository: Path, port: int) -> Iterator[Running]:
    """`tensorgate serve` over a repository, ended afterwards.

    Raises:
        OSError: it does not start; the message is its own.
    """
    command = [sys.executable, "-m", "gateway", "serve", "--model-repository", str(repository), "--port", str(port)]
    # A group of its own: Ctrl-C is for the demo, which then stops the server; two signals would cut requests off.
    process = subprocess.Popen(  # noqa: S603  # our own command
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    )
    running = Running(process, _wait_until_ready(process))
    try:
        yield running
    finally:
        running.stop()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    log = []
    for line in process.stderr or ():
        log.append(line)
        if match := _READY.search(line):
            return f"{match[1]}:{match[2]}"
    process.wait()
    raise OSError("".join(log).strip().removeprefix("tensorgate: ") or "the server ended before it was ready")
