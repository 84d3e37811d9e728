"""A response that is being computed for the cache, and everyone who waits for it."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Protocol

from gateway.batch import Outputs
from gateway.errors import DeadlineExceeded, restated
from gateway.job import Job, TimeLeft
from gateway.request import InferenceRequest

if TYPE_CHECKING:
    from gateway.cache import ModelCache


class Asker(Protocol):
    """Who asks the cache; answered once, unless it leaves."""

    def set_response(self, response: bytes, /) -> None:
        """The response, without the request's id."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """What there is instead."""
        ...


class Waiting:
    """An asker whose response is being computed."""

    __slots__ = ("_flight", "asker", "request")

    def __init__(self, flight: Flight, asker: Asker, request: InferenceRequest) -> None:
        self._flight = flight
        self.asker = asker
        self.request = request

    def leave(self) -> None:
        """Wait no longer; what only this one waited for is dropped."""
        self._flight.leave(self)

    def expire(self) -> None:
        """Answer that its time is up."""
        self._flight.leave(self)
        self.asker.set_exception(DeadlineExceeded("not executed in the time it had"))


class Flight:
    """One computation, and everyone who waits for its response: the `Receiver` of its job."""

    __slots__ = ("_cache", "_key", "_landed", "_timers", "job", "lookup_ns", "waiters")

    job: Job

    def __init__(self, cache: ModelCache, key: bytes, lookup_ns: int) -> None:
        self._cache = cache
        self._key = key
        self._landed = False
        self._timers: list[asyncio.TimerHandle] = []
        self.lookup_ns = lookup_ns
        self.waiters: dict[Waiting, None] = {}

    def done(self) -> bool:
        """Whether it has landed."""
        return self._landed

    def set_result(self, outputs: Outputs) -> None:
        """Have the response kept, and hand it to everyone who waits."""
        try:
            response = self._cache.keep(self._key, self, outputs)
        except Exception as error:  # what the model gave cannot be sent
            self.set_exception(error)
            return
        for waiting in self._land():
            self._cache.answer(waiting, self.job.request, response)

    def set_exception(self, error: Exception) -> None:
        """Tell everyone who waits."""
        for waiting in self._land():
            waiting.asker.set_exception(restated(error))

    def join(self, asker: Asker, request: InferenceRequest) -> Waiting:
        """Let one more wait."""
        waiting = Waiting(self, asker, request)
        self.waiters[waiting] = None
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Whoever leaves leaves the response to the others; without any, it is not computed."""
        self.waiters.pop(waiting, None)
        if not self.waiters and self._cache.discard(self.job):
            self._land()

    def watch(self, waiting: Waiting, left: TimeLeft) -> None:
        """Answer a waiter when its own time is up: the job's may be longer, for the sake of another."""
        loop = asyncio.get_running_loop()
        if left.to_wait < inf:
            self._timers.append(loop.call_later(left.to_wait, self._waited, waiting))
        # A lone caller whose deadline has passed still waits for what executes: others who join change nothing of that.
        if left.to_deadline < inf and (left.to_deadline > 0 or self.job.order is not None):
            self._timers.append(loop.call_later(left.to_deadline, self._expired, waiting))

    def _waited(self, waiting: Waiting) -> None:
        if self.job.order is not None:  # what has begun is worth waiting for
            self._expired(waiting)

    def _expired(self, waiting: Waiting) -> None:
        if waiting in self.waiters:
            waiting.expire()

    def _land(self) -> list[Waiting]:
        """Those who still wait; from now on an equal request is another computation's."""
        waiters = list(self.waiters)
        self.waiters.clear()
        if not self._landed:
            self._landed = True
            del self._cache.flights[self._key]
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
        return waiters
