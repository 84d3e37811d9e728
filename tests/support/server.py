"""A gateway in a process of its own, started the way its users start it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from tensorgate_client.wire import inference_pb2_grpc

_READY = re.compile(r"ready: gRPC on (\S+):(\d+)")
TENSORGATE = Path(sys.executable).with_name("tensorgate")
# On a GPU's machine the suite runs from a checkout that nobody has installed.
COMMAND: list[str | Path] = [TENSORGATE] if TENSORGATE.exists() else [sys.executable, "-m", "gateway"]


class ServerProcess:
    """A running server; `log` grows as it writes."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """Everything written so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_log(self, pattern: str | re.Pattern[str], timeout: float = 90) -> re.Match[str]:
        """The first match of `pattern` in the log, as soon as it is there."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (match := re.search(pattern, "".join(self._lines))):
                if not self._reader.is_alive() or not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no {pattern!r} in the server's log:\n{''.join(self._lines)}")
            return match

    def wait_until_ready(self) -> str:
        """The address it serves on."""
        host, port = self.wait_for_log(_READY).groups()
        return f"{host}:{port}"

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """The exit code, once it has ended and its log is complete."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def kill(self) -> None:
        """End it now, whatever state it is in."""
        self.process.kill()
        self.wait()
        if self.process.stdout:
            self.process.stdout.close()


def free_port() -> int:
    """A port that nobody listens on, for servers that take no 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """A server that is ready, and a stub to call it with."""

    def __init__(self, server: ServerProcess, address: str, channel: grpc.Channel) -> None:
        self.server = server
        self.address = address
        self.channel = channel
        self.stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def launch(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """`tensorgate serve ARGUMENTS`, killed at the end if it still runs."""
    defaults = {"TENSORGATE_METRICS_PORT": "0", "TENSORGATE_LOG_FORMAT": "human"}
    server = ServerProcess([*COMMAND, "serve", *arguments], {**defaults, **(environment or {})})
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def serving(repository: Path, *arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[Gateway]:
    """A gateway over `repository` on a free port, ready to be called."""
    with (
        launch("--model-repository", repository, "--port", "0", *arguments, environment=environment) as server,
        connected(server, server.wait_until_ready()) as gateway,
    ):
        yield gateway


@contextmanager
def connected(server: ServerProcess, address: str) -> Iterator[Gateway]:
    """A channel to a server that is ready."""
    # 200 MB: what the server refuses is the server's to say.
    options = [("grpc.max_send_message_length", 200_000_000), ("grpc.max_receive_message_length", 200_000_000)]
    with grpc.insecure_channel(address, options) as channel:
        yield Gateway(server, address, channel)
