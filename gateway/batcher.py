"""Dynamic batcher: what waits for a model runs together, on whichever instance is free first.

Everything happens on the event loop, so nothing is locked. Which jobs run, expire or are too late is decided by
`RequestQueue`, how a batch is answered by `Answering`; this module carries it out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import cast

from gateway.alarm import Alarm
from gateway.answering import AT_ONCE, Answering, Executed, concerns_all, fail
from gateway.batch import Batch, BatchLayout, Outputs
from gateway.batching_policy import BatchingPolicy
from gateway.durations import Durations
from gateway.errors import DeadlineExceeded, ModelNotReady, shown_ms, too_late
from gateway.inlining import Inlining
from gateway.instances import Instance, presentable
from gateway.job import Job, Receiver, TimeLeft
from gateway.request import InferenceRequest
from gateway.request_queue import RequestQueue
from gateway.retries import Retries
from gateway.returning import Returning

_log = logging.getLogger(__name__)

_BREATH_S = 0.001
"""How long batches may run on the event loop before others have their turn."""


class Batcher:
    """The queue and the instances of one model version.

    Args:
        instances: each runs one batch at a time.
        policy: how requests become batches.
        layout: how batches are put together.
        on_executed: told every batch that was executed well.
        clock: seconds; `InferenceRequest.deadline` is in its terms.

    Attributes:
        about: whose batches they are, for the log.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        policy: BatchingPolicy,
        layout: BatchLayout,
        on_executed: Executed,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy = policy
        self._layout = layout
        self._clock = clock
        self._durations = Durations()
        self._queue = RequestQueue(policy, self._durations)
        self._retries = Retries()
        self._returning = Returning()
        self._inlining = Inlining()
        self._instances = len(instances)
        self._idle = list(instances)
        self._ends: dict[Instance, float] = {}  # when those that run are expected to be free
        self._loop = asyncio.get_running_loop()
        self._answering = Answering(self._loop, on_executed)
        self._scheduled = False
        self._alarm = Alarm(self._loop, self._schedule)
        self._closing = False
        self._drained = asyncio.Event()
        self.about: Mapping[str, object] = {}

    def __repr__(self) -> str:
        retrying = sum(1 for _ in self._retries)
        return f"<Batcher waiting={len(self._queue)} running={len(self._ends)} retrying={retrying}>"

    @property
    def waiting(self) -> int:
        """Requests that wait to be executed, without those of a batch that failed and is tried apart."""
        return len(self._queue)

    def submit(self, request: InferenceRequest, receiver: Receiver) -> Job:
        """Queue a request; the receiver gets its outputs, never before this returns, or one of these errors.

        Raises:
            ModelNotReady: the version is being closed.
            QueueFull: too many requests wait.
            DeadlineExceeded: it was not executed in time, or could not be any more.
            InvalidInput: the backend finds the caller's data at fault.
            ExecutionFailed: the backend fails on this request, also when it is alone.
        """
        if self._closing:
            raise ModelNotReady("it is being unloaded: try again shortly, or another server")
        now = self._clock()
        level = self._policy.level(request.priority)
        shape = request.shape or self._layout.shape_of(request)
        patience = now + self._policy.queue_at(level).wait_s(request.timeout_s)
        deadline = request.deadline
        hurry = patience if patience < deadline else deadline
        job = Job(request, receiver, shape, level, deadline, now, patience, hurry)
        if not request.windowed and self._queue.is_full(level):
            self._advance()  # of what has just come, some may begin
            self._queue.check_room(level)
        if deadline < inf:
            free_at = now if self._idle else max(now, min(self._ends.values()))
            answers_at, due = self._queue.prospect(job, free_at, self._instances)
            if answers_at > due:
                job.tried = self._may_try(job, now)
                if not job.tried:
                    raise too_late(job.deadline - now, answers_at - now)
        self._queue.add(job)
        self._returning.came(request.rows, now)
        self._schedule()
        return job

    def _may_try(self, job: Job, now: float) -> bool:
        """Whether to run what seems to come too late, since that might be wrong.

        Only what would be late by its own time alone, or where nothing else is to be done.
        """
        left = job.deadline - now
        alone = self._durations.expected(job.shape, job.request.rows, cautious=True) > left
        spare = bool(self._idle) and not self._queue
        return left > 0 and (alone or spare) and self._durations.doubtful(job.shape, job.request.rows, now)

    def time_left(self, job: Job) -> TimeLeft:
        """What is left to a job's callers from now on."""
        return self._time_left(job.level, job.deadline, job.patience)

    def extend(self, job: Job, request: InferenceRequest, waiting: int) -> TimeLeft:
        """Let a further, equal request wait for a job: it becomes as urgent, and waits as long, as either wants.

        Args:
            job: of an earlier request.
            request: the further one.
            waiting: how many wait for the job already.

        Returns:
            What is left to this request.

        Raises:
            QueueFull: so many wait for it as may wait in the queue.
        """
        now = self._clock()
        level = self._policy.level(request.priority)
        if not request.windowed:
            self._queue.check_room(level, waiting)
        patience = now + self._policy.queue_at(level).wait_s(request.timeout_s)
        queued = job.order is not None
        if queued:
            self._queue.remove(job)
        job.level = min(job.level, level)
        job.deadline = max(job.deadline, request.deadline)
        job.patience = max(job.patience, patience)
        job.hurry = min(job.hurry, request.deadline, patience)
        job.delayed = job.delayed and job.patience <= now
        if queued:
            self._queue.add(job)
            self._schedule()  # a batch held back may be ripe now
        return self._time_left(level, request.deadline, patience)

    def _time_left(self, level: int, deadline: float, patience: float) -> TimeLeft:
        now = self._clock()
        return TimeLeft(inf if self._policy.queue_at(level).delays else patience - now, deadline - now)

    def discard(self, job: Job) -> bool:
        """Drop a job whose callers are gone; whether nothing comes of it any more.

        What executes goes on for the others in its batch; if its backend cares, it is told when the last one has gone.
        """
        if job.order is None:
            if job.batch is None or job.batch.context is None:
                return False
            job.batch.context.leave()
            return True
        self._queue.remove(job)
        self._schedule()  # the last one out may be what closing waits for
        return True

    def flush(self) -> None:
        """Hold nothing back any more: nobody will come to join."""
        self._queue.holds_back = False
        self._returning = Returning()
        self._schedule()

    async def aclose(self) -> None:
        """Refuse new requests and return when the last one is through; if cancelled, refuse what waits, too."""
        self._closing = True
        self.flush()
        try:
            await self._drained.wait()
        except asyncio.CancelledError:
            for job in [*self._queue, *self._retries]:
                self.discard(job)
                fail(job, ModelNotReady("it was unloaded before the request's turn came"))
            self._retries.clear()
            raise
        finally:
            self._alarm.cancel()

    def _schedule(self) -> None:
        """Look at the queue once everything that is arriving at this moment has been queued."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        self._advance()
        if self._closing and not (self._ends or self._queue or self._retries):
            self._drained.set()

    def _advance(self) -> None:
        """Answer what has expired, and start a batch on every idle instance that there is one for."""
        began = now = self._clock()
        if self._queue.expires <= now:
            for job in self._queue.expire(now):
                waited = shown_ms(now - job.arrived)
                fail(job, DeadlineExceeded(f"not executed within the {waited} it could wait"))
        for job in self._retries:
            if job.deadline <= now:
                fail(job, DeadlineExceeded("not executed in time"))
        while self._idle and (jobs := self._retries.take(self._idle[-1]) or self._take(now)):
            batch = self._batch(jobs)
            if self._idle[-1].inline and self._inlining.allows(jobs[0].shape, batch.rows):
                self._run_here(self._idle[-1], jobs, batch)
                if (later := self._clock()) - began > _BREATH_S:
                    self._schedule()  # the rest comes after what else the loop has to do
                    break
                now = later
            else:
                self._start(self._idle.pop(), jobs, batch)
        self._set_alarm(now)

    def _take(self, now: float) -> list[Job]:
        if not self._queue or self._waits_until(now) > now:
            return []
        jobs, late = self._queue.take(now)
        for job in late:
            fail(job, too_late(job.deadline - now))
        return jobs

    def _waits_until(self, now: float) -> float:
        """Until when to wait for the callers of the last batch, if that makes nobody late; else `now` or earlier."""
        until = self._returning.waits_until(now)
        return until if until > now and not self._closing and self._queue.may_wait(until) else now

    def _batch(self, jobs: list[Job]) -> Batch:
        batch = Batch([job.request for job in jobs], self._layout)
        for job in jobs:
            job.batch, job.request.stages.execution = batch, batch.execution
        return batch

    def _run_here(self, instance: Instance, jobs: list[Job], batch: Batch) -> None:
        result: list[Outputs] | Exception
        started = self._clock()
        try:
            result = instance.run_here(batch)
        except BaseException as error:  # as on a thread: not even sys.exit is for others to feel
            result = presentable(error)
        self._retried(instance, jobs, result)
        if isinstance(result, Exception):
            lost_ns = round((self._clock() - started) * 1e9)
            self._inlining.executed(jobs[0].shape, batch.rows, len(jobs), lost_ns)
            self._answering.give(jobs, result)
        elif len(jobs) <= AT_ONCE:
            self._answering.give(jobs, result)
            self._measure(jobs, started)
        else:  # busy until then: what it gave may lie in the memory that its next batch is put together in
            self._idle.remove(instance)
            self._ends[instance] = started
            self._answering.give_in_turns(jobs, result, partial(self._answered, instance, jobs, started))
        del result  # an exception's traceback has this frame: a cycle that would keep the batch for a while

    def _answered(self, instance: Instance, jobs: list[Job], started: float) -> None:
        """All of a batch that was executed here has been answered, and some of its callers may be back."""
        del self._ends[instance]
        self._idle.append(instance)
        self._measure(jobs, started)
        self._schedule()

    def _start(self, instance: Instance, jobs: list[Job], batch: Batch) -> None:
        now = self._clock()
        self._ends[instance] = now + self._durations.expected(jobs[0].shape, batch.rows)
        ended = partial(self._ended, instance, jobs, now)
        try:
            instance.run(batch, ended)
        except Exception as error:
            self._loop.call_soon(ended, presentable(error))

    def _ended(self, instance: Instance, jobs: list[Job], started: float, result: list[Outputs] | Exception) -> None:
        """The instance goes on with the next batch; meanwhile the jobs of this one are answered."""
        batch = cast(Batch, jobs[0].batch)
        del self._ends[instance]
        self._idle.append(instance)
        self._retried(instance, jobs, result)
        if self._instances == 1:  # others would go on meanwhile
            self._returning.ended(batch.rows, self._clock(), self._queue.gain(jobs[0].shape, batch.rows) / 2)
        try:
            self._advance()
        finally:
            self._answering.give(jobs, result)
            if isinstance(result, list):
                self._loop.call_soon(self._measure, jobs, started)
            if self._closing:
                self._schedule()

    def _retried(self, instance: Instance, jobs: list[Job], result: list[Outputs] | Exception) -> None:
        """See that the jobs of a batch that failed are tried apart."""
        failed = isinstance(result, Exception) and not concerns_all(result)
        if failed and len(jobs) > 1:
            told = "a batch of %d requests failed, trying them apart: %s"
            _log.info(told, len(jobs), type(result).__name__, extra=self.about)
        self._retries.ended(instance, jobs, well=not failed)

    def _measure(self, jobs: list[Job], started: float) -> None:
        """Learn how long a batch takes, once its callers have encoded and sent their answers."""
        now = self._clock()
        batch, shape = cast(Batch, jobs[0].batch), jobs[0].shape
        self._durations.add(shape, batch.rows, now - started, now)
        self._inlining.executed(shape, batch.rows, len(jobs), batch.execution.busy_ns)

    def _set_alarm(self, now: float) -> None:
        """Wake up when the queue wants it."""
        wakes = inf
        if self._queue:
            wakes = self._queue.wakes(idle=bool(self._idle))
            if self._idle and (until := self._waits_until(now)) > now:
                wakes = min(wakes, until)
        for job in self._retries:
            if not job.receiver.done():
                wakes = min(wakes, job.deadline)
        self._alarm.set(wakes, now)
