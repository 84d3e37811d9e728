"""Two gateways, what stands in front of them, and callers that do not stop while gateways come and go."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.calls import eventually
from support.server import COMMAND, ServerProcess, free_port
from tensorgate_client import InferenceClient, InferenceError

DEPLOY = Path(__file__).parents[2] / "deploy"
ENVOY = os.environ.get("TENSORGATE_ENVOY", "")
NO_ENVOY = "TENSORGATE_ENVOY does not name an Envoy: make test-balancing installs one (130 MB) and runs these tests"
NO_NGINX = "nginx is not on PATH: apt-get install --no-install-recommends nginx"

CALLERS, STREAMS = 8, 4

_EXECUTED = re.compile('"rpc": "Model(Stream)?Infer", "code": "OK", .*"model": "echo"')


class Member:
    """One of several gateways over the same repository, on the same port whenever it runs.

    Attributes:
        repository: of its models.
        server: its process, or the last one.
    """

    def __init__(self, repository: Path, environment: Mapping[str, str]) -> None:
        self.repository = repository
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._arguments = ["--model-repository", repository, "--port", str(self.port), "--access-log"]
        self._environment = {"TENSORGATE_METRICS_PORT": "off", "TENSORGATE_LOG_FORMAT": "json", **environment}
        self._before = 0
        self.start()

    def start(self) -> None:
        """Begin anew; `wait_until_ready` of the server says when."""
        self.server = ServerProcess([*COMMAND, "serve", *self._arguments], self._environment)

    def restart(self) -> None:
        """Begin anew after an end; returns when it is ready."""
        self._before = self.executed
        self.server.kill()  # its end of the pipe, too
        self.start()
        self.server.wait_until_ready()

    def settle(self) -> None:
        """Return when its log has all that it has answered: the line of one more call is there."""
        before = len(self.lines(rpc="ServerLive"))
        with InferenceClient(self.address) as client:
            assert client.is_live()
        eventually(lambda: len(self.lines(rpc="ServerLive")) > before)

    @property
    def executed(self) -> int:
        """Calls, and requests of streams, that the model `echo` has answered in all its runs."""
        return self._before + sum(bool(_EXECUTED.search(line)) for line in self.server.log.splitlines())

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """Lines of its access log with these fields."""
        found = [json.loads(line) for line in self.server.log.splitlines()]
        return [line for line in found if {**line, **fields} == line and line["logger"] == "gateway.access"]


@dataclass(frozen=True, slots=True)
class Balanced:
    """Gateways, and the one address at which callers find them.

    Attributes:
        members: the gateways.
        address: of whatever spreads calls over them.
        kind: of that: `nginx`, `envoy`, or the `client` itself.
    """

    members: list[Member]
    address: str
    kind: str

    def client(self, *, retry: bool = True) -> InferenceClient:
        """A client as its users make it."""
        return InferenceClient(self.address, balance=self.kind == "client", retry=retry)

    def mend(self) -> None:
        """Have all gateways run, and get calls."""
        for member in self.members:
            if member.server.process.poll() is not None:
                member.restart()
        self.settle()
        before = [member.executed for member in self.members]
        with self.client() as client:
            eventually(client.is_ready)
            while any(member.executed == least for member, least in zip(self.members, before, strict=True)):
                infer(client, 1)
        self.settle()

    def settle(self) -> None:
        """Return when the gateways' logs have all that they have answered."""
        for member in self.members:
            member.settle()

    @property
    def executed(self) -> int:
        """Calls, and requests of streams, that the model `echo` has answered on all of them."""
        return sum(member.executed for member in self.members)


@contextmanager
def gateways(repository: Path, environment: Mapping[str, str]) -> Iterator[list[Member]]:
    """Two of them, ready."""
    with ExitStack() as stack:
        members = []
        for _ in range(2):
            members.append(member := Member(repository, environment))
            stack.callback(lambda member=member: member.server.kill())
        for member in members:
            member.server.wait_until_ready()
        yield members


@contextmanager
def balanced(kind: str, members: list[Member], folder: Path) -> Iterator[Balanced]:
    """Gateways behind `nginx`, behind `envoy`, or spread over by the client."""
    if kind == "client":
        yield Balanced(members, "ipv4:" + ",".join(member.address for member in members), kind)
        return
    start = {"nginx": _nginx, "envoy": _envoy}[kind]
    port = free_port()
    process = start(folder, {8001: members[0].port, 8011: members[1].port, 8080: port, 9902: free_port()})
    try:
        eventually(lambda: _listens(port) or process.poll() is not None)
        yield Balanced(members, f"127.0.0.1:{port}", kind)
    finally:
        process.terminate()
        process.wait(60)


def _nginx(folder: Path, ports: Mapping[int, int]) -> subprocess.Popen[bytes]:
    if not shutil.which("nginx"):
        pytest.skip(NO_NGINX)
    text = (DEPLOY / "nginx" / "nginx.conf").read_text().replace("/tmp/", f"{folder}/")  # noqa: S108  # the file's own
    file = folder / "nginx.conf"
    file.write_text(_with_ports(text, ports))
    command = ["nginx", "-p", folder, "-c", file, "-e", folder / "error.log", "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, stderr=log)


def _envoy(folder: Path, ports: Mapping[int, int]) -> subprocess.Popen[bytes]:
    if not ENVOY:
        pytest.skip(NO_ENVOY)
    file = folder / "envoy.yaml"
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
    file.write_text(_with_ports(text, {**ports, 9901: free_port()}))
    command = [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "2", "--log-path", folder / "envoy.log"]
    return subprocess.Popen(command)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _with_ports(text: str, ports: Mapping[int, int]) -> str:
    """A configuration as it is, but for the ports: those that it names may be taken."""
    for named, port in ports.items():
        text, found = re.subn(rf"\b{named}\b", str(port), text)
        assert found, f"port {named} is not in the configuration"
    return text


def infer(client: InferenceClient, value: float, **options: Any) -> float:
    """What `echo` answers."""
    return float(client.infer("echo", {"INPUT0": np.float32([[value]])}, **options)["OUTPUT0"][0, 0])


class Load:
    """Callers and streams that go on, whatever happens, until the `with` block is left.

    Attributes:
        failed: how calls have failed.
        broken: how streams have ended early; each went on in another one from its first unanswered request on.
    """

    def __init__(self, balanced: Balanced) -> None:
        self.failed: list[InferenceError] = []
        self.broken: list[InferenceError] = []
        self._balanced = balanced
        self._answered: list[int] = []
        self._over = False
        self._faults: list[BaseException] = []

    @property
    def answered(self) -> int:
        """How many calls, and requests of streams, have been answered as they should."""
        return sum(self._answered)

    def __enter__(self) -> Load:
        self._before = self._balanced.executed
        self._client = self._balanced.client(retry=self._balanced.kind != "envoy")  # which repeats calls by itself
        work = [self._call] * CALLERS + [self._stream] * STREAMS
        self._answered = [0] * len(work)
        self._threads = [threading.Thread(target=self._run, args=(each, number)) for number, each in enumerate(work)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._client.close()
        if self._faults:
            raise self._faults[0]

    def goes_on(self) -> None:
        """Return when each caller and each stream has been answered some more times."""
        wanted = [before + 10 for before in self._answered]
        eventually(lambda: self._faults or all(map(int.__ge__, self._answered, wanted)))

    def executed(self) -> int:
        """What the gateways have done of it."""
        return self._balanced.executed - self._before

    def _run(self, work: Callable[[int], None], number: int) -> None:
        try:
            while not self._over:
                work(number)
        except BaseException as fault:  # a test that is left by another way than its asserts
            self._faults.append(fault)

    def _call(self, number: int) -> None:
        value = self._answered[number]
        try:
            assert infer(self._client, value, deadline_ms=30_000) == value
        except InferenceError as error:
            self.failed.append(error)
        else:
            self._answered[number] += 1

    def _stream(self, number: int) -> None:
        def batches() -> Iterator[Mapping[str, np.ndarray]]:
            value = self._answered[number]
            while not self._over:
                yield {"INPUT0": np.float32([[value]])}
                value += 1

        try:
            for result in self._client.stream("echo", batches(), window=2):
                assert result.outputs["OUTPUT0"][0, 0] == self._answered[number]
                self._answered[number] += 1
        except InferenceError as error:
            self.broken.append(error)
