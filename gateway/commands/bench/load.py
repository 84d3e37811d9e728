"""Requests by the second: so many in flight, or so many a second, by calls or over a stream."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
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
"""Most requests under way in an open loop, where their number is the result and not a setting."""

_ID = re.compile(r"\bid [\w-]+")


@dataclass(frozen=True, slots=True)
class Load:
    """Either a number of requests in flight, or with `rate` requests a second whether answers come or not."""

    in_flight: int = 0
    rate: float = 0.0


@dataclass(slots=True)
class Measured:
    """What was answered while it was measured: seconds that each took, and the reasons of those that failed.

    Attributes:
        sent: how many were sent meanwhile.
        unanswered: of all that were sent, at the end.
    """

    since: float
    until: float
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    unanswered: int = 0

    def send(self) -> None:
        """One more is sent."""
        self.unanswered += 1
        self.sent += self.since <= perf_counter() <= self.until

    def note(self, began: float, error: InferenceError | None) -> None:
        """One more is answered; `began` is when it was sent, or in an open loop was due."""
        now = perf_counter()
        self.unanswered -= 1
        if not self.since <= now <= self.until:
            return
        if error:
            self.errors[_ID.sub("id ...", str(error))] += 1  # which is another one each time
        else:
            self.latencies.append(now - began)


async def measure(
    client: aio.InferenceClient, model: Model, requests: Sequence[Inputs], load: Load, flags: Namespace
) -> Measured:
    """Send requests for as long as the flags say."""
    since = perf_counter() + flags.warmup
    measured = Measured(since, since + flags.seconds)
    sender = _Sender(client, model, itertools.cycle(requests), measured)
    work = asyncio.create_task(sender.stream(load) if flags.stream else sender.calls(load))
    try:
        await asyncio.wait({work}, timeout=measured.until - perf_counter())
        if work.done():
            work.result()  # a stream that broke
    finally:
        work.cancel()  # nobody waits for what is under way now: it would not count
        unanswered = measured.unanswered
        await asyncio.gather(work, return_exceptions=True)
        measured.unanswered = unanswered
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

    async def calls(self, load: Load) -> None:
        """Ask by calls, until this is cancelled."""
        if load.rate:
            await self._arrivals(load.rate)
        else:
            await asyncio.gather(*(self._caller() for _ in range(load.in_flight)))

    async def _caller(self) -> None:
        """Ask again as soon as there is an answer."""
        while True:
            await self._ask(perf_counter())

    async def _arrivals(self, rate: float) -> None:
        """Ask at random moments, so many a second on average."""
        room = asyncio.Semaphore(_OPEN_WINDOW)

        async def ask(due: float) -> None:
            await self._ask(due)
            room.release()

        async with asyncio.TaskGroup() as group:
            async for due in _due(rate):
                await room.acquire()
                group.create_task(ask(due))

    async def stream(self, load: Load) -> None:
        """Ask over one stream, until this is cancelled."""
        began: dict[int, float] = {}
        numbers = itertools.count()

        async def batches() -> AsyncIterator[Inputs]:
            async for due in _due(load.rate) if load.rate else _now():
                began[next(numbers)] = due
                self._measured.send()
                yield next(self._requests)

        window = load.in_flight or _OPEN_WINDOW
        results = self._client.stream(
            self._model.name, batches(), window=window, ordered=False, version=self._model.version
        )
        async with aclosing(results):
            async for result in results:
                self._measured.note(began.pop(result.index), result.error)

    async def _ask(self, began: float) -> None:
        self._measured.send()
        try:
            await self._client.infer(self._model.name, next(self._requests), version=self._model.version)
        except InferenceError as error:
            self._measured.note(began, error)
        else:
            self._measured.note(began, None)


async def _due(rate: float) -> AsyncIterator[float]:
    """When requests are due, each at its time: a Poisson process, since callers do not wait for each other."""
    due = perf_counter()
    while True:
        due += random.expovariate(rate)
        await asyncio.sleep(max(due - perf_counter(), 0))
        yield due


async def _now() -> AsyncIterator[float]:
    while True:
        yield perf_counter()
