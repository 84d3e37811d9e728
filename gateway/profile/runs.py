"""Executions of a model, first as the server has them and then under the profiler."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backends import base
from backends.base import InvalidInput, Operation
from gateway.batch import Batch
from gateway.commands.failure import FAILED, CommandFailed
from gateway.instances import ThreadInstance
from gateway.model import ServedModel
from gateway.request import InferenceRequest

_WARM_RUNS = 10
_WARM_S = 2.0
_WARM_AT_LEAST = 3  # TorchScript optimises a graph in its second run


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        plain_us, profiled_us: what each execution took without and with the profiler, in microseconds.
        operations: of all profiled executions together.
    """

    plain_us: NDArray[np.float64]
    profiled_us: NDArray[np.float64]
    operations: tuple[Operation, ...]


async def measure(
    served: ServedModel, requests: Sequence[InferenceRequest], profiler: base.Profiler, flags: Namespace
) -> Measured:
    """Execute requests in turn, each by itself as a batch, `flags.runs` times without and with the profiler.

    Raises:
        CommandFailed: the model fails, or the trace cannot be written.
    """
    try:
        return await _measure(_Runs(served, requests), profiler, flags)
    except InvalidInput as error:
        raise CommandFailed(f"model '{served.name}' refuses its input: {error}{_hint(flags)}") from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or flags.trace}: {error.strerror or error}", FAILED) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CommandFailed(f"model '{served.name}' failed: {reason}{_hint(flags)}", FAILED) from error


def _hint(flags: Namespace) -> str:
    return "" if flags.input else " (its input was random: --input FILE gives it rows of yours, --size other sizes)"


async def _measure(runs: _Runs, profiler: base.Profiler, flags: Namespace) -> Measured:
    await runs.warm_up(runs.plain)
    plain_us = await runs.timed(runs.plain, flags.runs, "without the profiler")
    submit = runs.plain.worker.submit
    # On the thread of the plain instance: another would have, for torch, other threads of OpenMP, and other times.
    profiled = await submit(partial(profiler.instance, by_node=flags.by == "node"))
    instance = ThreadInstance(runs.plain.worker, profiled)
    try:
        await runs.warm_up(instance)
        await submit(profiled.start)
        profiled_us = await runs.timed(instance, flags.runs, f"with {profiler.name}")
        operations = await submit(partial(profiled.stop, flags.trace))
    finally:
        await submit(profiled.close)
    return Measured(plain_us, profiled_us, tuple(Operation(*operation) for operation in operations))


class _Runs:
    """Executes a model's requests one after the other.

    Attributes:
        plain: the first instance that the server would have.
    """

    def __init__(self, served: ServedModel, requests: Sequence[InferenceRequest]) -> None:
        (self.plain, *_) = served.runtime.instances
        self._layout = served.layout
        self._requests = requests

    async def warm_up(self, instance: ThreadInstance) -> None:
        """Let the instance set itself up, and not longer than it takes."""
        enough = time.perf_counter() + _WARM_S
        for number in range(_WARM_RUNS):
            await self._run(instance, number)
            if number + 1 >= _WARM_AT_LEAST and time.perf_counter() > enough:
                return

    async def timed(self, instance: ThreadInstance, runs: int, how: str) -> NDArray[np.float64]:
        """Microseconds that each of some executions took, without what the gateway does around them."""
        times = np.empty(runs)
        for number in range(runs):
            times[number] = await self._run(instance, number)
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {runs} runs {how}", end="\r\033[K", file=sys.stderr, flush=True)
        return times

    async def _run(self, instance: ThreadInstance, number: int) -> float:
        batch = Batch([self._requests[number % len(self._requests)]], self._layout)
        await instance.submit(batch)
        return (batch.execution.executed_ns - batch.execution.assembled_ns) / 1000
