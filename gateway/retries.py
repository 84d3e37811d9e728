"""Jobs of batches that failed, tried apart until only those are left whose fault it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.instances import Instance
from gateway.job import Job


@dataclass(slots=True)
class _Half:
    """Jobs to run together and, if they are half of a batch that failed, its other half."""

    jobs: list[Job]
    twin: list[Job] = field(default_factory=list)


class Retries:
    """Halves that wait for an instance, and the twins of those that run. Touched by the event loop alone."""

    def __init__(self) -> None:
        self._waiting: deque[_Half] = deque()
        self._twins: dict[Instance, list[Job]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        if not self._waiting and not self._twins:  # nearly always
            return iter(())
        waiting = (half.jobs + half.twin for half in self._waiting)
        return (job for jobs in (*waiting, *self._twins.values()) for job in jobs)

    def take(self, instance: Instance) -> list[Job]:
        """The jobs that `instance` is to run next, without those that nobody waits for any more; none if there is none.

        What they did is to be told to `ended`.
        """
        while self._waiting:
            half = self._waiting.popleft()
            if jobs := [job for job in half.jobs if not job.receiver.done()]:
                self._twins[instance] = half.twin
                return jobs
            if half.twin:
                self._waiting.appendleft(_Half(half.twin))
        return []

    def ended(self, instance: Instance, jobs: list[Job], *, well: bool) -> None:
        """Note how `instance` fared with `jobs`, whether they came from here or not."""
        twin = self._twins.pop(instance, [])
        if not well and len(jobs) > 1:
            self._split(jobs)
        if well and len(twin) > 1:
            self._split(twin)  # the fault is in there, no need to see it happen once more
        elif twin:
            self._waiting.appendleft(_Half(twin))  # most likely all well, so they come first

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._twins.clear()

    def _split(self, jobs: list[Job]) -> None:
        middle = len(jobs) // 2
        self._waiting.append(_Half(jobs[:middle], jobs[middle:]))
