"""Who is measured: servers that take turns, and the bare runtime without a server."""

from __future__ import annotations

from dataclasses import replace

import grpc

from benchmarks.generator import PATH
from benchmarks.h2load import H2load
from benchmarks.measured import Measured
from benchmarks.minilm import LENGTH
from benchmarks.models import Arrays
from benchmarks.peers import perf_analyzer
from benchmarks.peers.turns import turn
from benchmarks.peers.workloads import Workload
from benchmarks.report import BenchmarkError
from benchmarks.served import Body, Target
from benchmarks.worker import Worker

_TOLERANCE = 1e-4  # of an embedding: a batch of one and a batch of many add up in different orders


class Server:
    """A server; it runs while it is measured and at no other time."""

    def __init__(self, target: Target, embedding: Arrays) -> None:
        self.target = target
        self._embedding = embedding
        self._load = H2load(target)
        self._bodies: dict[str, Body] = {}

    def measure(self, workload: Workload, in_flight: int, seconds: float) -> Measured:
        """As `Contender.measure`."""
        with turn(self.target.pid):
            body = self.body(workload)
            if workload.analyzer:
                return perf_analyzer.measure(self.target.address, body.model, in_flight, seconds)
            measured = self._load.measure(body, in_flight, seconds)
            return replace(measured, rate=measured.rate * body.messages)

    def body(self, workload: Workload) -> Body:
        """Its calls, after the first time it has answered one rightly."""
        if workload.name not in self._bodies:
            self._bodies[workload.name] = self._checked(workload)
        return self._bodies[workload.name]

    def _checked(self, workload: Workload) -> Body:
        if "x" not in workload.inputs:
            return self.target.body(workload.model, workload.inputs, self._embedding, _TOLERANCE)
        expected = {"y": workload.inputs["x"]}
        if workload.messages > 1:
            return self.target.stream(workload.model, workload.inputs, expected, workload.messages)
        return self.target.body(workload.model, workload.inputs, expected)


class Echo(Server):
    """A gRPC server that gives back the bytes it gets."""

    def _checked(self, workload: Workload) -> Body:
        body = self.target.unchecked(workload.model, workload.inputs)
        message = body.file.read_bytes()[5:]
        with grpc.insecure_channel(self.target.address) as channel:
            if channel.unary_unary(PATH)(message, timeout=10) != message:
                raise BenchmarkError("a gRPC echo answers something else")
        return body


class Bare:
    """ONNX Runtime in a loop, as many rows a call as requests would be in flight."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def measure(self, workload: Workload, in_flight: int, seconds: float) -> Measured:
        """As `Contender.measure`."""
        return Measured(**self._worker("measure", rows=in_flight, length=LENGTH, seconds=seconds))
