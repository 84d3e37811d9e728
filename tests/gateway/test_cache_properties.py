"""Whatever is asked again and again, by whoever leaves or loads when: right answers, computed once, never stale."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batching import request, values
from support.caching import CachedCall, CachedRig
from support.fake_clock import START, Run, fake_loop, now, run_on_fake_clock, until

from gateway.cache import ResponseCache
from gateway.errors import DeadlineExceeded, ExecutionFailed, QueueFull

PLENTY = 1_000_000
POISONED = 3
CONFIGS = [
    "max_batch_size: 1",
    "max_batch_size: 8",
    "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 500000 preferred_batch_size: 2 }",
    "max_batch_size: 2 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
    "max_batch_size: 2 dynamic_batching { default_queue_policy { default_timeout_microseconds: 750000"
    " allow_timeout_override: true } priority_levels: 2 default_priority_level: 2 }",
    "max_batch_size: 2 dynamic_batching { default_queue_policy { default_timeout_microseconds: 500000"
    " timeout_action: DELAY } }",
]
moments = st.integers(0, 64).map(lambda n: n / 16)  # exact, and often the same
spans = st.integers(1, 32).map(lambda n: n / 16)
limits = st.one_of(st.just(inf), spans)


@dataclass(frozen=True)
class Arrival:
    """A request to send."""

    at: float
    value: int
    width: int
    within: float
    timeout: float
    priority: int
    leaves_after: float


arrivals = st.builds(
    Arrival,
    at=moments,
    value=st.integers(0, POISONED),
    width=st.integers(1, 2),
    within=limits,
    timeout=limits,
    priority=st.integers(0, 2),
    leaves_after=st.one_of(st.just(inf), st.just(inf), moments),
)


@dataclass(frozen=True)
class Setup:
    """A model, and the cache in front of it."""

    config: str
    instances: int
    takes: float
    ttl_s: float
    max_bytes: int
    breaks: list[bool]


setups = st.builds(
    Setup,
    st.sampled_from(CONFIGS),
    st.integers(1, 2),
    spans,
    limits,
    st.sampled_from([PLENTY, PLENTY, 2000, 1000, 100]),
    st.lists(st.booleans(), max_size=4),
)


class Load(CachedRig):
    """One load of the model: each answers differently."""

    def __init__(self, setup: Setup, store: ResponseCache, number: int) -> None:
        self.breaks = iter(setup.breaks)
        self.offset = 1000 * number
        super().__init__(
            setup.config,
            setup.takes,
            store,
            setup.ttl_s,
            instances=setup.instances,
            execute=self.execute,
            before=self.before,
        )

    def execute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model."""
        if (inputs["x"] == POISONED).any():
            raise RuntimeError("poisoned")
        return {"y": inputs["x"] + self.offset}

    def before(self, _: object) -> None:
        """Break now and then."""
        if next(self.breaks, False):
            raise OSError("the worker is gone")

    def runs_of(self, arrival: Arrival) -> list[Run]:
        """The executions of such a request, in their order."""
        runs = [run for instance in self.instances for run in instance.runs if arrival.value in values(run.batch)]
        same = [run for run in runs if run.batch.requests[0].inputs["x"].shape[1] == arrival.width]
        return sorted(same, key=lambda run: (run.started, run.ended))


class Tracked(CachedCall):
    """A request, and what happened to it."""

    def __init__(self, load: Load, arrival: Arrival) -> None:
        self.load, self.arrival, self.arrived, self.cancelled_at = load, arrival, now(), inf
        wanted = {"within": arrival.within, "timeout": arrival.timeout, "priority": arrival.priority}
        super().__init__(load.cache, request(arrival.value, 1, arrival.width, **wanted))

    def expected(self, x: np.ndarray) -> np.ndarray:
        """By the load that was there when it came."""
        return x + self.load.offset

    def cancel(self) -> None:
        """The caller hangs up."""
        if not self.task.done():
            self.cancelled_at = now()
            self.leave()  # at once, as the server does it; the task is told a moment later
            self.task.cancel()


class Trial:
    """Loads of a model, one after the other, over one cache."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.store = ResponseCache(setup.max_bytes, fake_loop().time)
        self.loads: list[Load] = []
        self.calls: list[Tracked] = []
        self.load()

    def load(self) -> None:
        """What comes from now on is the new load's."""
        self.loads.append(Load(self.setup, self.store, len(self.loads)))

    async def close(self, load: Load) -> None:
        """As `ServedModel` does it."""
        await load.batcher.aclose()
        await load.cache.aclose()

    async def reload(self) -> None:
        """Load anew, drain the old one."""
        old = self.loads[-1]
        self.load()
        await self.close(old)

    def send(self, arrival: Arrival) -> None:
        """A request comes."""
        call = Tracked(self.loads[-1], arrival)
        call.task.add_done_callback(self.check_size)
        self.calls.append(call)
        if arrival.leaves_after < inf:
            fake_loop().call_later(arrival.leaves_after, call.cancel)

    def check_size(self, _: object) -> None:
        """The cache is never larger than allowed."""
        assert self.store.used_bytes <= self.setup.max_bytes

    async def go(self, arrivals: list[Arrival], reloads: list[float]) -> None:
        """Let everything happen at its time, and wait for the end."""
        loop = fake_loop()
        reloading: list[asyncio.Task[None]] = []
        for at in reloads:  # between requests: one that is sent and not yet queued would meet a closed load
            loop.call_at(START + at + 1 / 32, lambda: reloading.append(asyncio.create_task(self.reload())))
        for arrival in arrivals:
            loop.call_at(START + arrival.at, self.send, arrival)
        await until(max([0.0, *reloads, *(arrival.at for arrival in arrivals)]) + 1 / 16)
        if self.calls:
            await asyncio.wait([call.task for call in self.calls])
        await asyncio.gather(*reloading, self.close(self.loads[-1]))


def check_call(trial: Trial, call: Tracked) -> None:
    """It ended with what it deserves, and no later than its own limits allow."""
    runs, policy = call.load.runs_of(call.arrival), call.load.batcher._policy
    queue = policy.queue_at(policy.level(call.arrival.priority))
    patience = inf if queue.delays else call.arrived + queue.wait_s(call.arrival.timeout)
    waits_until = min(call.arrived + call.arrival.within, patience)
    if call.answered:
        known = [run for run in runs if not run.error and run.ended <= call.ended]
        assert any(run.ended + trial.setup.ttl_s > call.arrived for run in known), "too old"
        failed = any(run.error and run.ended <= call.ended for run in runs)  # what has begun has only a deadline
        limit = call.arrived + call.arrival.within if failed else waits_until
        begun = [run for run in runs if run.started <= limit and run.ended >= call.arrived]
        assert begun or call.ended == call.arrived, "too late"
    elif call.failed_with is ExecutionFailed:
        alone = [run for run in runs if run.error and len(run.batch.requests) == 1]
        assert any(call.arrived <= run.ended <= call.ended for run in alone), "not its own failure"
    elif call.failed_with is DeadlineExceeded:
        assert waits_until < inf, "it has no limit of its own"
        begun = any(run.started <= waits_until and (run.error or run.ended >= call.arrived) for run in runs)
        last = max([run.ended for run in runs if run.ended <= call.ended], default=0.0)
        limit = call.arrived + call.arrival.within if begun else waits_until
        assert call.ended <= max(limit, last)
        assert call.arrival.within < inf or call.ended >= waits_until, "it could have waited on"
    elif call.failed_with is QueueFull:
        assert queue.max_size < 1024
        assert call.ended == call.arrived
    else:
        assert call.failed_with is asyncio.CancelledError, f"{call.error!r}"
        assert call.ended == call.cancelled_at


def check_sharing(trial: Trial, load: Load) -> None:
    """Nothing is computed twice at a time, nor again while the answer is kept; and the counters know it."""
    mine = [call for call in trial.calls if call.load is load]
    for arrival in {call.arrival for call in mine}:
        runs = load.runs_of(arrival)
        for before, after in pairwise(runs):
            assert before.ended <= after.started, "twice at a time"
            if not before.error and trial.setup.max_bytes == PLENTY:
                assert before.ended + trial.setup.ttl_s <= after.started, "though it was kept"
    assert load.stats.cache_hit.count == sum(call.hit for call in mine)
    runs = [run for instance in load.instances for run in instance.runs if not run.error]
    assert load.stats.cache_miss.count == sum(len(run.batch.requests) for run in runs)


@settings(max_examples=500, deadline=None)
@given(setup=setups, arrivals=st.lists(arrivals, max_size=20), reloads=st.lists(moments, max_size=2))
def test_equal_requests_share_what_they_may(setup, arrivals, reloads):
    """No mixture of equal requests, limits, hang-ups, failures and reloads gives a wrong or stale answer."""

    async def scenario() -> None:
        trial = Trial(setup)
        await trial.go(arrivals, reloads)
        for load in trial.loads:
            assert repr(load.batcher) == "<Batcher waiting=0 running=0 retrying=0>"
            assert repr(load.cache).startswith("<ModelCache in_flight=0 ")
            check_sharing(trial, load)
        for call in trial.calls:
            check_call(trial, call)
        assert trial.store.used_bytes == 0, "a load that is gone keeps nothing"

    run_on_fake_clock(scenario)


@settings(max_examples=100, deadline=None)
@given(
    puts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900), st.booleans()), max_size=40),
    max_bytes=st.integers(0, 4000),
)
def test_store_is_bounded_and_forgets_the_least_recently_used(puts, max_bytes):
    """The cache stays within its bytes, entries count their bookkeeping, and what was used lately stays longest."""
    store, recent = ResponseCache(max_bytes, lambda: 0.0), []
    for number, size, put in puts:
        key = bytes([number])
        if put:
            store.put(key, bytes(size), 0, inf)
            recent = [(k, s) for k, s in recent if k != key or size + 400 > max_bytes]
            if size + 400 <= max_bytes:
                recent.append((key, size))
            while sum(s + 400 for _, s in recent) > max_bytes:
                recent.pop(0)
        elif (found := next((entry for entry in recent if entry[0] == key), None)) is not None:
            assert store.get(key) == bytes(found[1])
            recent.remove(found)
            recent.append(found)
        else:
            assert store.get(key) is None
        assert store.used_bytes == sum(s + 400 for _, s in recent) <= max_bytes
