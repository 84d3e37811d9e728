"""Calls in a process of their own: what crashes or hangs there is a reason to report, and not the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST = 300  # characters of a reason


class StepFailed(Exception):
    """A call did not come to its end; the message is a line for the report."""


class Child:
    """Runs functions one after the other in another process, which is started at the first call and after a crash.

    Functions are those of our own modules, their arguments and results whatever pickles.

    Args:
        folders: where the process also looks for modules, after all that is installed.
        timeout_s: for each call.
    """

    def __init__(self, folders: tuple[Path, ...] = (), timeout_s: float | None = None) -> None:
        self._folders = folders
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __repr__(self) -> str:
        return f"<Child {'idle' if self._process is None else f'pid={self._process.pid}'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns there.

        Raises:
            StepFailed: it raised, the process ended, or the time is over.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send((function, args, kwargs))
            succeeded, result = pipe.recv() if pipe.poll(self._timeout_s) else self._late()
        except (EOFError, ConnectionError):
            raise StepFailed(self._how_it_ended()) from None
        except BaseException:  # interrupted: whatever it is doing now, nobody waits for it
            self._end()
            raise
        if not succeeded:
            raise StepFailed(str(result))
        return cast("R", result)

    def _start(self) -> Connection[Any, Any]:
        ours, theirs = Pipe()
        self._log.seek(0)
        self._log.truncate()
        folders = [str(folder) for folder in self._folders]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                # -P: a folder named like one of our packages must not get in the way.
                [sys.executable, "-P", "-m", "backends.optimize.child", str(theirs.fileno()), *folders],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C is for its starter, which ends it
            )
        self._pipe = ours
        return ours

    def _late(self) -> tuple[bool, str]:
        self._end()
        return False, f"not done after {self._timeout_s:g} s (--timeout-s)"

    def _how_it_ended(self) -> str:
        """Why there is no answer, with the process's last words."""
        code = self._process.wait() if self._process else 0
        self._end()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return shortened(f"the process {how}{f': {last}' if last else ''}")

    def _end(self) -> None:
        if self._pipe:
            self._pipe.close()
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started
            self._process.wait()
        self._pipe = self._process = None


def shortened(text: str) -> str:
    """A text of several lines as one, its first words."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def main(descriptor: int) -> None:
    """Do what comes through a pipe until it is closed."""
    pipe: Connection[Any, Any] = Connection(descriptor)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(function, args, kwargs))


def _answer(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[bool, Any]:
    from backends.optimize.variant import TechniqueFailed  # noqa: PLC0415  # not under the name __main__

    try:
        return True, function(*args, **kwargs)
    except TechniqueFailed as error:
        return False, shortened(str(error))
    except Exception as error:  # whatever an exporter raises
        return False, shortened(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch.profiler reports that it starts and stops
    main(int(sys.argv[1]))
