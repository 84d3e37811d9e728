"""A gateway to measure: its models, checked request bodies, its own counts and its processor time."""

from __future__ import annotations

import itertools
import struct
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from benchmarks.models import Arrays, Model
from benchmarks.report import BenchmarkError
from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb

_ANSWER_S = 60
_SETTLE_S = 2


@dataclass(frozen=True, slots=True)
class Body:
    """A file with the framed messages of one call, as load generators send it."""

    model: str
    file: Path
    messages: int = 1
    rpc: str = "ModelInfer"


@dataclass(frozen=True, slots=True)
class Counts:
    """What ModelStatistics has counted."""

    succeeded: int
    rows: int
    executions: int

    def since(self, before: Counts) -> Counts:
        """What came after `before`."""
        return Counts(self.succeeded - before.succeeded, self.rows - before.rows, self.executions - before.executions)


class Target:
    """A running gateway, or another server of the same protocol."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder
        self.address = gateway.address
        self.pid = gateway.server.process.pid

    def body(self, model: str, inputs: Arrays, expected: Arrays, tolerance: float = 0) -> Body:
        """A request as a file, once a real client has been given the expected outputs for it.

        Raises:
            BenchmarkError: it is refused, or answered with something else.
        """
        request = encode_infer_request(model, inputs)
        try:
            outputs = decode_infer_response(self._gateway.stub.ModelInfer(request, timeout=_ANSWER_S))
        except grpc.RpcError as error:
            raise BenchmarkError(f"model '{model}' answers {error.code().name}: {error.details()}") from None
        for name, array in expected.items():
            if name not in outputs or not np.allclose(outputs[name], array, rtol=0, atol=tolerance):
                raise BenchmarkError(f"model '{model}' answers a wrong '{name}': run the tests before the benchmarks")
        return self.unchecked(model, inputs)

    def unchecked(self, model: str, inputs: Arrays) -> Body:
        """A request as a file, for models that must not have seen it before."""
        message = encode_infer_request(model, inputs).SerializeToString()
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            file.write(struct.pack(">BI", 0, len(message)) + message)
        return Body(model, Path(file.name))

    def stream(self, model: str, inputs: Arrays, expected: Arrays, messages: int) -> Body:
        """A ModelStreamInfer stream of so many equal requests as a file, once a real client got the expected outputs.

        Raises:
            BenchmarkError: a message is answered with something else.
        """
        request = encode_infer_request(model, inputs)
        answers = self._gateway.stub.ModelStreamInfer(itertools.repeat(request, messages), timeout=_ANSWER_S)
        for _ in range(messages):
            answer = next(answers)
            outputs = decode_infer_response(answer.infer_response)
            if answer.error_message or any(not np.array_equal(outputs[name], expected[name]) for name in expected):
                raise BenchmarkError(f"model '{model}' answers a stream wrongly: run the tests before the benchmarks")
        single = self.unchecked(model, inputs).file
        file = single.with_suffix(".stream")
        file.write_bytes(single.read_bytes() * messages)
        return Body(model, file, messages, "ModelStreamInfer")

    def counts(self, model: str) -> Counts | None:
        """The server's own counts, or None if it offers no ModelStatistics."""
        try:
            answer = self._gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name=model), timeout=_ANSWER_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise BenchmarkError(f"ModelStatistics answers {error.code().name}: {error.details()}") from None
        (model_statistics,) = answer.model_stats
        succeeded = model_statistics.inference_stats.success.count
        return Counts(succeeded, model_statistics.inference_count, model_statistics.execution_count)

    def metrics(self) -> str:
        """Its metrics page."""
        where = self._gateway.server.wait_for_log(r"metrics on (\S+)").group(1)
        with urllib.request.urlopen(where, timeout=_ANSWER_S) as answer:  # noqa: S310
            return str(answer.read().decode())

    @contextmanager
    def answers_all(self, model: str, sent: int) -> Iterator[None]:
        """Holds the server to having answered well as many requests as are sent inside."""
        before = self.counts(model)
        yield
        if before is None:
            return
        patience = time.monotonic() + _SETTLE_S  # it may count after it has answered
        while (answered := self.counts(model).since(before).succeeded) < sent and time.monotonic() < patience:
            time.sleep(0.01)
        if answered != sent:
            raise BenchmarkError(f"model '{model}': sent {sent} requests, the server counts {answered} answered well")

    def processor_s(self) -> float:
        """Processor time of the server's threads so far, in seconds."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def served(models: Mapping[str, Model], *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Target]:
    """A gateway that serves these models, on a free port.

    Raises:
        BenchmarkError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tensorgate-bench-") as name:
        folder = Path(name)
        repository = RepositoryBuilder(folder / "models")
        for model, described in models.items():
            repository.add(model, described.files, described.config)
        with ExitStack() as stack:
            try:
                gateway = stack.enter_context(serving(repository.root, *arguments, environment=environment))
            except AssertionError as error:  # with the server's log
                raise BenchmarkError(f"the gateway does not start: {str(error).splitlines()[-1]}") from None
            yield Target(gateway, folder)
