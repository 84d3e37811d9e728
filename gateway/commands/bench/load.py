"""Requests by the second: so many in flight, or so many a second, by calls or over a stream."""

from __future__ import annotations

import asyncio
import itertools
import random
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter

from gateway.commands.model import Model
from gateway.commands.requests import Inputs
from tensorgate_client import InferenceError, aio

_OPEN_WINDOW = 4096
"""Most requests under way on a stream in an open loop, where their number is the result and not a setting."""


@dataclass(frozen=True, slots=True)
class Load:
    """Either a number of requests in flight, or with `rate` requests a second whether answers come or not."""

    in_flight: int = 0
    rate: float = 0.0


@dataclass(slots=True)
class Measured:
    """What was answered while it was measured: seconds that each took, and the reasons of those that failed."""

    since: float
    until: float
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, began: float, error: InferenceError | None) -> None:
        """One more is answered; `began` is when it was sent, or in an open loop was due."""
        now = perf_counter()
        if not self.since <= now <= self.until:
            return
        if error:
            self.errors[str(error)] += 1
        else:
            self.latencies.append(now - began)


async def measure(
    client: aio.InferenceClient, model: Model, requests: Sequence[Inputs], load: Load, flags: Namespace
) -> Measured:
    """Send requests for as long as the flags say."""
    since = perf_counter() + flags.warmup
    measured = Measured(since, since + flags.seconds)
    sender = _Sender(client, model, itertools.cycle(requests), measured)
    if flags.stream:
        await sender.stream(load)
    elif load.rate:
        await sender.arrivals(load.rate)
    else:
        await asyncio.gather(*(sender.caller() for _ in range(load.in_flight)))
    return measured


class _Sender:
    """Sends requests and notes how they fare."""

    def __init__(
        self, client: aio.InferenceClient, model: Model, requests: Iterator[Inputs], measured: Measured
    ) -> None:
        self._client = client
        self._model = model
        self._requests = requests
        self._measured = measured

    async def caller(self) -> None:
        """Ask again as soon as there is an answer."""
        while perf_counter() < self._measured.until:
            await self._ask(perf_counter())

    async def arrivals(self, rate: float) -> None:
        """Ask at random moments, so many a second on average."""
        async with asyncio.TaskGroup() as group:
            async for due in self._due(rate):
                group.create_task(self._ask(due))

    async def stream(self, load: Load) -> None:
        """Ask over one stream."""
        began: dict[int, float] = {}

        async def batches() -> AsyncIterator[Inputs]:
            moments = self._due(load.rate) if load.rate else self._now()
            async for due in moments:
                began[len(began)] = due
                yield next(self._requests)

        window = load.in_flight or _OPEN_WINDOW
        results = self._client.stream(
            self._model.name, batches(), window=window, ordered=False, version=self._model.version
        )
        async with aclosing(results):
            async for result in results:
                self._measured.note(began[result.index], result.error)

    async def _ask(self, began: float) -> None:
        try:
            await self._client.infer(self._model.name, next(self._requests), version=self._model.version)
        except InferenceError as error:
            self._measured.note(began, error)
        else:
            self._measured.note(began, None)

    async def _due(self, rate: float) -> AsyncIterator[float]:
        """When requests are due, each at its time: a Poisson process, since callers do not wait for each other."""
        due = perf_counter()
        while (due := due + random.expovariate(rate)) < self._measured.until:
            await asyncio.sleep(max(due - perf_counter(), 0))
            yield due

    async def _now(self) -> AsyncIterator[float]:
        while (now := perf_counter()) < self._measured.until:
            yield now
