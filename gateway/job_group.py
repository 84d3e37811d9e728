"""Waiting jobs of one shape, in the order in which they run."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from gateway.job import Job


class Sorted:
    """Jobs by a key. Queues are short and mostly appended to, so that a list beats a tree."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[tuple[tuple[float, ...], Job]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, job in self._items)

    def between(self, start: int, end: int) -> Iterator[Job]:
        """Those at these places, the last one excluded."""
        return (job for _, job in islice(self._items, start, end))

    def add(self, key: tuple[float, ...], job: Job) -> None:
        """Put a job where its key belongs, which no other has."""
        items = self._items
        if not items or items[-1][0] < key:
            items.append((key, job))
        else:
            insort(items, (key, job))  # keys differ, so jobs are never compared

    def remove(self, key: tuple[float, ...]) -> None:
        """Take out the job of a key."""
        del self._items[self.number_before(key)]

    def number_before(self, key: tuple[float, ...]) -> int:
        """How many have a smaller key."""
        return bisect_left(self._items, (key,))

    def remove_first(self, number: int) -> None:
        """Take out the first so many."""
        del self._items[:number]

    @property
    def first_key(self) -> tuple[float, ...]:
        """The smallest key."""
        return self._items[0][0]

    @property
    def first(self) -> Job:
        """The job of the smallest key."""
        return self._items[0][1]


@dataclass(slots=True)
class Group:
    """Queued jobs of one shape.

    Attributes:
        jobs: in their order.
        rows: of all of them.
        dated: how many have a deadline.
        ripens: the least of when each came and of half the time each has; None if it has to be looked up again.
    """

    jobs: Sorted = field(default_factory=Sorted)
    rows: int = 0
    dated: int = 0
    ripens: tuple[float, float] | None = (inf, inf)

    def first_to_ripen(self) -> tuple[float, float]:
        """When the first came, and when the first has had half of its time."""
        if self.ripens is None:
            self.ripens = min(job.arrived for job in self.jobs), min((job.arrived + job.hurry) / 2 for job in self.jobs)
        return self.ripens
