"""Measures a variant as it is served: a gateway in a process of its own, called by the Python client."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backends.base import Array, Signature
from backends.optimize.child import StepFailed
from backends.optimize.results import Served
from backends.optimize.scores import Call, Evaluation, InvalidScore
from backends.optimize.timing import Latency
from gateway import process
from gateway.commands.bench.load import Load, Measured, measure
from gateway.commands.model import Model, read_model
from gateway.commands.requests import Inputs
from gateway.optimize.entry import Entries
from tensorgate_client import InferenceClient, InferenceError, aio

_FLAGS = ("--port", "0", "--metrics-port", "off", "--model-control", "explicit", "--load-model")
_DEADLINE_MS = 120_000.0
_DIFFERENT = 64  # requests, sent in turn
_ENOUGH = 1000  # requests: ten of them beyond the 99th percentile
_LONGER = 10  # times as long at most, for as many
_LEAST, _LONGEST_S = 20, 60.0  # requests, without which there is nothing to tell; seconds to wait for them
_WARM = 0.25  # of the time that is measured


class ServedEntries(Entries):
    """Entries of a repository, each measured in a server of its own: no other's crash, threads or memory are in it.

    Args:
        root: the repository's folder.
        signature: the tensors of every variant, the batch first.
        in_flight: callers at once, for latencies under load.
        seconds: that each latency is measured for, or longer where there were too few requests.
    """

    def __init__(self, root: Path, signature: Signature, in_flight: int, seconds: float) -> None:
        super().__init__(root, signature)
        self._in_flight = in_flight
        self._seconds = seconds

    def measure(
        self, name: str, rows: Mapping[str, Array], evaluate: Callable[[Call], Evaluation]
    ) -> tuple[Evaluation, Served]:
        """Serve an entry, evaluate it, and send it requests of one row each.

        Raises:
            StepFailed: it does not load, or a request fails.
        """
        count = min(len(next(iter(rows.values()))), _DIFFERENT)
        requests = [{key: array[row : row + 1] for key, array in rows.items()} for row in range(count)]
        with process.serving(self.root, *_FLAGS, name) as server:
            try:
                address = server.wait_until_ready()
                with InferenceClient(address) as client:
                    _check_loaded(client, name)
                    evaluation = evaluate(lambda inputs: client.infer(name, inputs, deadline_ms=_DEADLINE_MS))
                    model = read_model(client, name, "")
                alone, loaded = asyncio.run(self._latencies(address, model, requests))
            except OSError as error:  # it ended before it was ready
                raise StepFailed(f"the server did not start: {error}") from error
            except (InferenceError, InvalidScore, StepFailed) as error:
                raise StepFailed(server.ended() or str(error)) from error
            memory = _peak_bytes(server.pid)
        return evaluation, Served(
            alone=Latency.of(alone.latencies),
            loaded=Latency.of(loaded.latencies),
            in_flight=self._in_flight,
            rows_per_s=len(loaded.latencies) / (loaded.until - loaded.since),
            memory_bytes=memory,
        )

    async def _latencies(self, address: str, model: Model, requests: Sequence[Inputs]) -> tuple[Measured, Measured]:
        """What requests took one after the other, and with others at once."""
        async with aio.InferenceClient(address, retry=False) as client:
            alone = await _measured(client, model, requests, Load(1), self._seconds)
            wanted = self._seconds * _ENOUGH / len(alone.latencies)
            seconds = min(max(self._seconds, wanted), self._seconds * _LONGER)
            return alone, await _measured(client, model, requests, Load(self._in_flight), seconds)


async def _measured(
    client: aio.InferenceClient, model: Model, requests: Sequence[Inputs], load: Load, seconds: float
) -> Measured:
    """What requests took, for so many seconds, or longer where too few of them would be answered."""
    while True:
        flags = Namespace(warmup=_WARM * seconds, seconds=seconds, stream=False)
        measured = await measure(client, model, requests, load, flags)
        if measured.errors:
            ((reason, times),) = measured.errors.most_common(1)
            raise StepFailed(f"{times:,} of {measured.sent:,} requests failed: {reason}")
        if len(measured.latencies) >= _LEAST:
            return measured
        if seconds > _LONGEST_S:
            raise StepFailed(f"{len(measured.latencies)} requests were answered within {seconds:g} s")
        seconds *= 2


def _check_loaded(client: InferenceClient, name: str) -> None:
    if not client.model_ready(name):
        reasons = [model.reason for model in client.index() if model.name == name and model.reason]
        raise StepFailed(f"it does not load: {reasons[0] if reasons else 'the server does not say why'}")


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has held at once."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
