"""Response cache: equal requests are computed once, also while the first of them is still being computed.

`ResponseCache` is the server's one store, bounded by bytes. Each model version that caches has a `ModelCache` in front
of it, which knows the key of a request and which requests are being computed at this moment (`flight.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from itertools import count
from math import inf
from typing import TypeAlias

from cachetools import Cache, LRUCache

from gateway.batch import Outputs
from gateway.batcher import Batcher
from gateway.digest import Question, digest
from gateway.flight import Asker, Flight, Waiting
from gateway.request import InferenceRequest
from gateway.stats import ModelStatistics

_OVERHEAD = 400
"""Bytes of bookkeeping that an entry costs beside its response, as measured; without them small ones would be free."""

_AT_ONCE = 1000

_generations = count()

Encode = Callable[[InferenceRequest, Outputs], bytes]


_Entry: TypeAlias = tuple[bytes, float, int]
"""A serialized response, when it gets too old, and the load it is of. Plain tuples of such are no garbage collector's
business, which matters when there are a million."""


class _Entries(LRUCache[Hashable, _Entry]):
    """Counts what gives way."""

    evictions = 0

    def popitem(self) -> tuple[Hashable, _Entry]:
        """As the cache does to make room."""
        self.evictions += 1
        return super().popitem()


class ResponseCache:
    """Serialized responses by key, the least recently used giving way first.

    Args:
        max_bytes: of all entries together.
        clock: seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = _Entries(max_bytes, lambda entry: len(entry[0]) + _OVERHEAD)
        self._clock = clock
        self._lock = threading.Lock()  # `get` may come from another thread

    def __repr__(self) -> str:
        return f"<ResponseCache entries={len(self._entries)} bytes={self.used_bytes} of {self._entries.maxsize:.0f}>"

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Size of all entries."""
        return int(self._entries.currsize)

    @property
    def max_bytes(self) -> int:
        """The most that they may take."""
        return int(self._entries.maxsize)

    @property
    def evictions(self) -> int:
        """Entries that gave way to others so far."""
        return self._entries.evictions

    def get(self, key: bytes) -> bytes | None:
        """The response kept under `key`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            response, expires, _ = entry
            if expires < inf and expires <= self._clock():
                del self._entries[key]
                return None
            return response

    def put(self, key: bytes, response: bytes, generation: int, ttl_s: float) -> None:
        """Keep a response for `ttl_s`, unless it is larger than the whole cache."""
        if len(response) + _OVERHEAD <= self._entries.maxsize:
            expires = self._clock() + ttl_s if ttl_s < inf else inf
            with self._lock:
                self._entries[key] = response, expires, generation

    async def forget(self, generation: int) -> None:
        """Drop everything of a load that is no longer served, little by little: others are served meanwhile."""
        with self._lock:
            keys = list(self._entries)
        for start in range(0, len(keys), _AT_ONCE):
            with self._lock:
                for key in keys[start : start + _AT_ONCE]:
                    if key in self._entries and Cache.__getitem__(self._entries, key)[2] == generation:
                        del self._entries[key]
            await asyncio.sleep(0)


class ModelCache:
    """The cache as one load of a model version sees it.

    Args:
        store: the server's.
        batcher: computes what is not there.
        encode: makes a response, without the request's id.
        stats: where hits and misses are counted.
        ttl_s: how long a response holds.

    Attributes:
        generation: the number of the load.
    """

    def __init__(
        self, store: ResponseCache, batcher: Batcher, encode: Encode, stats: ModelStatistics, ttl_s: float = inf
    ) -> None:
        self._store = store
        self._batcher = batcher
        self._encode = encode
        self._stats = stats
        self._ttl_s = ttl_s
        # Part of every key: no load answers from another's entries, be it of another model, version or time.
        self.generation = next(_generations)
        self._suffixes = [b"%d" % self.generation, b"%d typed" % self.generation]
        self.flights: dict[bytes, Flight] = {}
        self.discard = batcher.discard

    def __repr__(self) -> str:
        return f"<ModelCache in_flight={len(self.flights)} {self._store!r}>"

    def kept(self, key: bytes) -> bytes | None:
        """The response, without an id, if there is one."""
        return self._store.get(key)

    def ask(self, key: bytes, request: InferenceRequest, decode: Callable[[], None], asker: Asker) -> Waiting | None:
        """Have the asker answered: at once if the response is kept, and then there is nothing to wait for.

        Args:
            key: of the message.
            request: still without tensors.
            decode: completes it; called if it has to be computed.
            asker: whose request it is; not told of what is raised here.

        Raises:
            GatewayError, InvalidInput: as `decode` and `Batcher.submit`. Failures are not kept.
        """
        stages = request.stages
        response = self._store.get(key)
        stages.cache = time.perf_counter_ns()
        if response is not None:
            stages.outcome = "hit"
            self._stats.hit(stages)
            asker.set_response(response)
            return None
        flight = self.flights.get(key)
        if flight is None:
            stages.outcome = "miss"
            decode()
            flight = Flight(self, key, stages.cache - stages.received)
            flight.job = self._batcher.submit(request, flight)
            self.flights[key] = flight
            return flight.join(asker, request)
        stages.outcome = "joined"
        if len(flight.waiters) == 1:  # until now the job's limits were this one's own
            flight.watch(next(iter(flight.waiters)), self._batcher.time_left(flight.job))
        left = self._batcher.extend(flight.job, request, len(flight.waiters))
        flight.job.request.deadline = flight.job.deadline  # also while it executes: it now does so for this one, too
        waiting = flight.join(asker, request)
        flight.watch(waiting, left)
        return waiting

    def answer(self, waiting: Waiting, computed: InferenceRequest, response: bytes) -> None:
        """Hand over a response that was computed for this request or for another one."""
        stages = waiting.request.stages
        if waiting.request is not computed:
            stages.execution = computed.stages.execution
            self._stats.hit(stages)
        waiting.asker.set_response(response)

    def keep(self, key: bytes, flight: Flight, outputs: Outputs) -> bytes:
        """The response, which is kept from now on."""
        response = self._encode(flight.job.request, outputs)
        encoded = time.perf_counter_ns()
        self._store.put(key, response, self.generation, self._ttl_s)
        self._stats.cache_miss.add(flight.lookup_ns + time.perf_counter_ns() - encoded)
        return response

    async def aclose(self) -> None:
        """Drop what this load has kept."""
        await self._store.forget(self.generation)

    def key(self, asked: Question, *, typed: bool) -> bytes:
        """A key of all that can change the response: this load, the tensors sent, the outputs wanted.

        Of the request's parameters only the form of the response counts: no backend gets to see any.
        """
        return digest(asked) + self._suffixes[typed]
