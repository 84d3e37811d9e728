"""Whatever comes, in whichever order: every request ends once, with its own answer or an error that it earned."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batching import LAYOUT, Call, policy, request
from support.fake_clock import START, FakeInstance, Run, fake_loop, now, run_on_fake_clock, until

from gateway.batch import Batch
from gateway.batcher import Batcher
from gateway.errors import DeadlineExceeded, ExecutionFailed, QueueFull

POISONED = 0.5  # the fraction of a poisoned request's value

moments = st.integers(0, 64).map(lambda n: n / 16)  # exact, and often the same
spans = st.integers(1, 48).map(lambda n: n / 16)
limits = st.one_of(st.just(inf), spans)


@dataclass(frozen=True)
class Arrival:
    """A request to send."""

    at: float
    rows: int
    width: int
    within: float
    timeout: float
    priority: int
    poisoned: bool
    leaves_after: float


arrivals = st.builds(
    Arrival,
    at=moments,
    rows=st.integers(1, 4),
    width=st.integers(1, 2),
    within=limits,
    timeout=limits,
    priority=st.integers(0, 4),
    poisoned=st.integers(0, 7).map(lambda n: n == 0),
    leaves_after=st.one_of(st.just(inf), st.just(inf), moments),
)


@st.composite
def policies(draw: st.DrawFn) -> str:
    """A config.pbtxt."""
    rows, levels = draw(st.integers(4, 12)), draw(st.integers(0, 3))
    queue = [f"max_queue_size: {draw(st.sampled_from([0, 0, 1, 3]))}"]
    if draw(st.booleans()):
        queue.append(f"default_timeout_microseconds: {draw(st.integers(1, 32)) * 62_500}")
    queue.append(f"allow_timeout_override: {draw(st.sampled_from(['true', 'false']))}")
    queue.append(f"timeout_action: {draw(st.sampled_from(['REJECT', 'DELAY']))}")
    batching = [f"default_queue_policy {{ {' '.join(queue)} }}"]
    if levels:
        batching.append(f"priority_levels: {levels} default_priority_level: {draw(st.integers(1, levels))}")
        batching.append("priority_queue_policy { key: 1 value { max_queue_size: 2 } }")
    batching += [f"preferred_batch_size: {size}" for size in draw(st.lists(st.integers(1, rows), max_size=2))]
    batching.append(f"max_queue_delay_microseconds: {draw(st.sampled_from([0, 0, 125_000, 1_000_000]))}")
    return f"max_batch_size: {rows} dynamic_batching {{ {' '.join(batching)} }}"


@dataclass(frozen=True)
class Setup:
    """A model: its config.pbtxt, instances, how long batches take, when it breaks, if it may run inline."""

    config: str
    instances: int
    durations: list[float]
    faults: list[str]
    inline: bool


setups = st.builds(
    Setup,
    policies(),
    st.integers(1, 2),
    st.lists(spans, min_size=1, max_size=3),
    st.lists(st.sampled_from(["", "", "raises", "fails"]), max_size=8),
    st.booleans(),
)


class Tracked(Call):
    """A request, and what happened to it."""

    def __init__(self, trial: Trial, arrival: Arrival, value: float) -> None:
        self.trial = trial
        self.arrival = arrival
        self.arrived = now()
        self.level = trial.policy.level(arrival.priority)
        self.batcher = trial.current
        self.runs: list[Run] = []
        self.cancelled_at = inf
        wanted = {"within": arrival.within, "timeout": arrival.timeout, "priority": arrival.priority}
        super().__init__(trial, request(value, arrival.rows, arrival.width, **wanted))

    async def _run(self, trial: Trial) -> float:
        self.batcher = trial.current  # when the request comes
        return await super()._run(self.batcher)

    def cancel(self) -> None:
        """The caller hangs up."""
        if not self.task.done():
            self.cancelled_at = now()
            self.task.cancel()

    @property
    def waits_until(self) -> float:
        """When its wait is over, executed or not."""
        policy = self.trial.policy.queue_at(self.level)
        patience = inf if policy.delays else self.arrived + policy.wait_s(self.arrival.timeout)
        return min(self.arrived + self.arrival.within, patience)

    @property
    def started(self) -> float:
        """When it first ran, or ended without having."""
        return min([self.ended, *(run.started for run in self.runs)])


class Trial:
    """A batcher that is replaced at times, and everything that it was asked and did."""

    def __init__(self, setup: Setup) -> None:
        self.policy = policy(setup.config)
        self.setup = setup
        self.faults = iter(setup.faults)
        self.calls: list[Tracked] = []
        self.instances: list[tuple[Batcher, FakeInstance]] = []
        self.batchers: list[Batcher] = []
        self.current = self.load()

    def load(self) -> Batcher:
        """A new batcher."""
        instances = [
            FakeInstance(self.execute, self.takes, self.before, inline=self.setup.inline)
            for _ in range(self.setup.instances)
        ]
        batcher = Batcher(instances, self.policy, LAYOUT, lambda _: None, fake_loop().time)
        self.instances += [(batcher, instance) for instance in instances]
        self.batchers.append(batcher)
        fake_loop().watched.append(batcher)
        return batcher

    async def reload(self) -> None:
        """As the catalogue does it: the new one answers from now on, the old one drains."""
        old, self.current = self.current, self.load()
        await old.aclose()

    def takes(self, batch: Batch) -> float:
        """Virtual seconds of a batch."""
        return self.setup.durations[batch.rows % len(self.setup.durations)]

    def before(self, batch: Batch) -> Exception | None:
        """Break the instance now and then."""
        for member in batch.requests:
            next(call for call in self.calls if call.request is member).runs.append(self.instances_run(batch))
        fault = next(self.faults, "")
        if fault == "raises":
            raise OSError("the worker is gone")
        return OSError("the worker is gone") if fault == "fails" else None

    def instances_run(self, batch: Batch) -> Run:
        """The execution of a batch."""
        return next(run for _, instance in self.instances for run in instance.runs if run.batch is batch)

    def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The model."""
        x = inputs["x"]
        if (x % 1 == POISONED).any():
            raise RuntimeError("poisoned")
        return {"y": 2 * x + 1}

    async def go(self, arrivals: list[Arrival], reloads: list[float]) -> None:
        """Let everything happen at its time, and wait for the end."""
        loop = fake_loop()
        reloading: list[asyncio.Task[None]] = []
        for at in reloads:
            loop.call_at(START + at, lambda: reloading.append(asyncio.create_task(self.reload())))
        for number, arrival in enumerate(arrivals):
            loop.call_at(START + arrival.at, self.send, arrival, number + POISONED * arrival.poisoned)
        await until(max([0.0, *reloads, *(arrival.at for arrival in arrivals)]) + 1 / 16)
        if self.calls:
            await asyncio.wait([call.task for call in self.calls])
        await asyncio.gather(*reloading, self.current.aclose())

    def send(self, arrival: Arrival, value: float) -> None:
        """A request comes."""
        call = Tracked(self, arrival, value)
        self.calls.append(call)
        if arrival.leaves_after < inf:
            fake_loop().call_later(arrival.leaves_after, call.cancel)


def covered(runs: list[Run], begin: float, end: float) -> bool:
    """Whether an instance was busy all the time in between."""
    for run in sorted(runs, key=lambda run: (run.started, run.ended)):
        if run.started <= begin:
            begin = max(begin, run.ended)
    return begin >= end


def check_call(trial: Trial, call: Tracked) -> None:
    """It ended with what it deserves, and not too late."""
    arrival, last = call.arrival, max([run.ended for run in call.runs], default=0.0)
    assert all(run.error for run in call.runs[:-1]), "what ran well is not run again"
    if call.answered:
        assert not arrival.poisoned
        assert call.ended == last
    elif call.failed_with is ExecutionFailed:
        assert call.runs[-1].error
        assert len(call.runs[-1].batch.requests) == 1, "nobody fails for another"
    elif call.failed_with is DeadlineExceeded:
        limit = call.arrived + arrival.within if call.runs else call.waits_until
        assert limit < inf
        assert call.ended <= max(limit, last)
    elif call.failed_with is QueueFull:
        others = [c for c in trial.calls if c is not call and c.level == call.level and c.batcher is call.batcher]
        waiting = [c for c in others if c.arrived <= call.ended <= c.started]
        assert call.ended == call.arrived
        assert len(waiting) >= trial.policy.queue_at(call.level).max_size
    else:
        assert call.failed_with is asyncio.CancelledError, f"{call.error!r}"
        assert call.ended == call.cancelled_at
    assert not call.runs or call.started < call.waits_until, "what has run out of time is not begun"


def check_instances(trial: Trial) -> None:
    """Batches are as the model takes them, and nobody waits while an instance has nothing to do."""
    for batcher, instance in trial.instances:
        for run in instance.runs:
            assert run.batch.rows <= trial.policy.max_rows
            assert len({member.inputs["x"].shape[1] for member in run.batch.requests}) == 1
            members = [call for call in trial.calls if any(call.request is member for member in run.batch.requests)]
            assert all(call.ended >= run.started for call in members), "who has left costs no compute"
        for call in trial.calls:
            held = call.arrived + trial.policy.max_delay_s
            assert call.batcher is not batcher or covered(instance.runs, held, call.started), "work is not put off"


def check_order(trial: Trial) -> None:
    """Nothing overtakes a more urgent level."""
    if trial.policy.max_delay_s or trial.policy.preferred_rows:
        return
    for call in trial.calls:
        for other in trial.calls:
            same = other.batcher is call.batcher and other.arrival.width == call.arrival.width
            if same and call.level < other.level and call.arrived < other.started < call.started:
                fits = other.runs[0].batch.rows + call.arrival.rows <= trial.policy.max_rows if other.runs else False
                assert not fits, f"{other.arrival} overtook {call.arrival}"


@settings(max_examples=500, deadline=None)
@given(setup=setups, arrivals=st.lists(arrivals, max_size=16), reloads=st.lists(moments, max_size=2))
def test_every_request_ends_once_with_what_it_deserves(setup, arrivals, reloads):
    """No load, limit, failure, hang-up or reload ever gives a wrong answer, an undeserved error or none at all."""

    async def scenario() -> None:
        trial = Trial(setup)
        await trial.go(arrivals, reloads)
        assert {repr(batcher) for batcher in trial.batchers} == {"<Batcher waiting=0 running=0 retrying=0>"}
        for call in trial.calls:
            check_call(trial, call)
        check_instances(trial)
        check_order(trial)

    run_on_fake_clock(scenario)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), min_size=1, max_size=24))
def test_rows_come_back_to_whom_they_belong(sizes):
    """Of whatever rows and shapes batches are made, everyone gets the answer to every one of their own numbers."""

    async def scenario() -> None:
        instance = FakeInstance(lambda inputs: {"y": 2 * inputs["x"] + 1})
        batcher = Batcher([instance], policy("max_batch_size: 8"), LAYOUT, lambda _: None, fake_loop().time)
        calls = []
        for number, (rows, width) in enumerate(sizes):
            wanted = request(0, rows, width)
            wanted.inputs["x"] = (1000 * number + np.arange(rows * width, dtype=np.float32)).reshape(rows, width)
            calls.append(Call(batcher, wanted))
        await asyncio.gather(*(call.task for call in calls))
        await batcher.aclose()
        assert sum(run.batch.rows for run in instance.runs) == sum(rows for rows, _ in sizes)

    run_on_fake_clock(scenario)
