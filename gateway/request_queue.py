"""Requests that wait for an instance, and which of them run next. Synchronous and without a clock of its own."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count
from math import ceil, inf
from typing import NamedTuple

from gateway.batching_policy import BatchingPolicy
from gateway.durations import Durations
from gateway.errors import QueueFull
from gateway.job import Job, Order
from gateway.job_group import Group, Sorted

_DUE_S = 1.0
"""A request without a deadline is due this long after it came: what has deadlines may overtake it, not for ever."""

_WAY_BACK_S = 0.002
"""What an answer may need on its way to the caller, which nobody here can measure."""


class Prospect(NamedTuple):
    """What would become of a job.

    Attributes:
        answers_at: when its batch can be answered.
        due: when the most urgent one of that batch has to be.
    """

    answers_at: float
    due: float


class RequestQueue:
    """The waiting requests of one model version. Touched by the event loop alone.

    Args:
        policy: how requests wait and what makes a batch.
        durations: how long batches take.
    """

    def __init__(self, policy: BatchingPolicy, durations: Durations) -> None:
        self._policy = policy
        self._durations = durations
        self._groups: dict[Hashable, Group] = {}
        self._expiring = Sorted()
        self._waiting: dict[int, int] = {}
        self._numbers = count()
        self.holds_back = bool(policy.preferred_rows) or policy.max_delay_s > 0

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __len__(self) -> int:
        return sum(len(group.jobs) for group in self._groups.values())

    def __iter__(self) -> Iterator[Job]:
        return (job for group in self._groups.values() for job in group.jobs)

    def is_full(self, level: int) -> bool:
        """Whether as many jobs of a level wait as may."""
        return self._waiting.get(level, 0) >= self._policy.queue_at(level).max_size

    def check_room(self, level: int, others: int = 0) -> None:
        """Refuse a further job of a level whose queue is full; or a caller, where `others` wait for one and the same.

        Raises:
            QueueFull: it is.
        """
        limit = self._policy.queue_at(level).max_size
        if others >= limit or (not others and self.is_full(level)):
            raise QueueFull(f"{limit} requests wait already (max_queue_size): try again later or elsewhere")

    def add(self, job: Job) -> None:
        """Queue a job."""
        job.order = self._order(job)
        group = self._groups.get(job.shape)
        if group is None:
            group = self._groups[job.shape] = Group()
        group.jobs.add(job.order, job)
        group.rows += job.request.rows
        group.dated += job.deadline < inf
        if self.holds_back and group.ripens:
            group.ripens = min(group.ripens[0], job.arrived), min(group.ripens[1], (job.arrived + job.hurry) / 2)
        if not job.request.windowed:
            self._waiting[job.level] = self._waiting.get(job.level, 0) + 1
        if job.hurry < inf and job.expires < inf:
            self._expiring.add((job.expires, job.order[-1]), job)

    def remove(self, job: Job) -> None:
        """Take a queued job out."""
        assert job.order is not None  # noqa: S101
        group = self._groups[job.shape]
        group.jobs.remove(job.order)
        self._left(group, job)

    def _order(self, job: Job) -> Order:
        due = job.arrived + _DUE_S
        return job.level, job.delayed, due if due < job.hurry else job.hurry, next(self._numbers)

    def prospect(self, job: Job, free_at: float, instances: int) -> Prospect:
        """What would become of a job that is not queued yet, by the measured time of what comes before it.

        Args:
            job: to be queued.
            free_at: when an instance is free to run what waits.
            instances: how many there are.
        """
        limit, order = self._policy.max_rows, self._order(job)
        ahead, own_rows, busy = 0.0, job.request.rows, bool(self._groups)
        beside: Iterator[Job] = iter(())
        for shape, group in self._groups.items():
            number = group.jobs.number_before(order)
            before = ceil(number / len(group.jobs) * group.rows)
            if shape == job.shape:
                batches, rows_before = divmod(before + job.request.rows - 1, limit)
                own_rows = max(rows_before + 1, job.request.rows)
                if group.dated:
                    beside = group.jobs.between(ceil(batches * limit / group.rows * len(group.jobs)), number)
            else:
                batches = ceil(before / limit)
            ahead += batches * self._durations.expected(shape, min(limit, group.rows), cautious=True)
        begins = free_at + ahead / instances
        together = begins + self._takes(job.shape, own_rows, cautious=busy)
        alone = begins + self._takes(job.shape, job.request.rows, cautious=busy)
        # The most urgent of them; who is too late already has nothing to lose.
        due = next((other.deadline for other in beside if alone <= other.deadline < inf), inf)
        if together <= min(due, job.deadline):
            return Prospect(together, job.deadline)
        # Who has much time may wait for a batch of its own; if all did, that would leave nobody any.
        apart = alone + self._takes(job.shape, max(own_rows - job.request.rows, 1), cautious=True)
        if apart <= (job.arrived + job.deadline) / 2:
            return Prospect(apart, job.deadline)
        return Prospect(together, min(due, job.deadline))

    def _takes(self, shape: Hashable, rows: int, *, cautious: bool) -> float:
        """Seconds until a batch that starts now has been answered, 0 if nothing is known."""
        expected = self._durations.expected(shape, rows, cautious=cautious)
        return expected + _WAY_BACK_S if expected else 0.0

    def gain(self, shape: Hashable, rows: int) -> float:
        """Seconds of computing that are saved if so many rows join what waits, instead of running after it."""
        if self.holds_back or self._policy.levels or len(self._groups) > 1:
            return 0.0
        waiting = self._groups[shape].rows if shape in self._groups else 1 - len(self._groups)
        if not 0 < waiting < self._policy.max_rows:
            return 0.0
        together = min(waiting + rows, self._policy.max_rows)
        expected = self._durations.expected
        return expected(shape, waiting) + expected(shape, rows) - expected(shape, together)

    def may_wait(self, until: float) -> bool:
        """Whether what waits is not yet a whole batch, and can be answered in time if it runs then."""
        group = next(iter(self._groups.values()), None)
        if group is None or len(self._groups) > 1 or group.rows >= self._policy.max_rows:
            return False
        ends = until + self._takes(group.jobs.first.shape, self._policy.max_rows, cautious=True)
        return all(ends <= job.hurry for job in group.jobs)

    @property
    def expires(self) -> float:
        """When the first has waited too long."""
        return self._expiring.first.expires if self._expiring else inf

    def expire(self, now: float) -> list[Job]:
        """Take out what has waited too long; where the policy says so, it goes behind the others instead."""
        expired = []
        while self._expiring and (job := self._expiring.first).expires <= now:
            self.remove(job)
            if job.deadline > now and self._policy.queue_at(job.level).delays:
                job.delayed = True
                self.add(job)
            else:
                expired.append(job)
        return expired

    def take(self, now: float) -> tuple[list[Job], list[Job]]:
        """Take out what runs next on an idle instance, and what cannot be answered in time any more.

        Returns:
            The jobs of one batch, of one shape and within the policy's limit, none if nothing is to run now; and the
            jobs that such a batch would answer too late.
        """
        late: list[Job] = []
        while (group := self._next_group(now)) is not None:
            limit, ends = self._rows_to_run(group, now), -inf
            if group.dated:
                limit = self._in_time(group, limit, now)
                # Whoever is likely to be late gives way to those who are not, if there are any.
                takes = self._takes(group.jobs.first.shape, min(limit, group.rows), cautious=group.rows > limit)
                ends = now + takes
            jobs: list[Job] = []
            seen = 0
            for job in group.jobs:
                if job.deadline < ends and not job.tried:
                    late.append(job)
                elif job.request.rows <= limit or not jobs:
                    jobs.append(job)
                    limit -= job.request.rows
                else:
                    break
                seen += 1
                self._left(group, job)
            group.jobs.remove_first(seen)
            if jobs:
                return jobs, late
        return [], late

    def _in_time(self, group: Group, limit: int, now: float) -> int:
        """Fewer rows, if so many would make the most urgent job late that need not be, and fewer would not."""
        least, urgent = 0, None
        for job in group.jobs:
            lost = job.deadline < now + self._takes(job.shape, job.request.rows, cautious=True) and not job.tried
            if not lost:
                least += job.request.rows
                if job.deadline < inf and not job.tried:
                    urgent = job
                    break
        rows = whole = min(limit, group.rows)
        if urgent is None or least > limit:
            return limit  # there is none, or it does not come into this batch
        while urgent.deadline < now + self._takes(urgent.shape, rows, cautious=True):
            if rows <= least:
                return limit  # it is late whatever runs beside it
            rows = max((1 << (rows.bit_length() - 1)) - 1, least)  # durations are known by powers of two
        return limit if rows == whole else rows

    def _left(self, group: Group, job: Job) -> None:
        """A job was taken out of its group."""
        assert job.order is not None  # noqa: S101
        group.rows -= job.request.rows
        group.dated -= job.deadline < inf
        group.ripens = None
        if not group.rows:
            del self._groups[job.shape]
        if not job.request.windowed:
            self._waiting[job.level] -= 1
        if job.hurry < inf and job.expires < inf:
            self._expiring.remove((job.expires, job.order[-1]))
        job.order = None

    def wakes(self, *, idle: bool) -> float:
        """When the queue wants to be looked at again, if nothing comes or ends before."""
        if not (idle and self.holds_back):
            return self.expires
        return min([self.expires, *(self._ripe_at(group) for group in self._groups.values())])

    def _next_group(self, now: float) -> Group | None:
        """Of the shapes of which enough waits, or has waited long enough, the one whose first job is most urgent."""
        if not self.holds_back and len(self._groups) <= 1:
            return next(iter(self._groups.values()), None)
        if self.holds_back:
            ripe = [group for group in self._groups.values() if self._rows_to_run(group, now)]
        else:
            ripe = list(self._groups.values())
        return min(ripe, key=lambda group: group.jobs.first_key, default=None)

    def _rows_to_run(self, group: Group, now: float) -> int:
        """Most rows of the next batch of a shape; 0 while it is worth waiting for more."""
        limit = self._policy.max_rows
        if not self.holds_back:
            return limit
        if preferred := self._preferred(group):
            return preferred
        return limit if group.rows >= limit or now >= self._ripe_at(group) else 0

    def _preferred(self, group: Group) -> int:
        """The largest preferred batch size that the first jobs of a shape make up exactly, or 0."""
        best = rows = 0
        if not self._policy.preferred_rows:
            return 0
        for job in group.jobs:
            rows += job.request.rows
            if rows > self._policy.max_rows:
                break
            if rows in self._policy.preferred_rows:
                best = rows
        return best

    def _ripe_at(self, group: Group) -> float:
        """When a shape's jobs run however few they are: holding them back takes at most half of the time they have."""
        came, half = group.first_to_ripen()
        takes = self._durations.expected(group.jobs.first.shape, group.rows)
        return min(came + self._policy.max_delay_s, half - takes)
