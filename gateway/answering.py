"""How the jobs of a batch are answered: each one by itself, whatever becomes of the others."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from gateway.batch import Batch, Outputs
from gateway.errors import GatewayError, restated
from gateway.job import Job

AT_ONCE = 16
"""Answers given in one turn of the event loop, where it is the loop that is busy: their callers go on meanwhile."""

Executed: TypeAlias = Callable[[Batch], None]


class Answering:
    """Gives the jobs of one model version their answers.

    Args:
        loop: that all of it happens on.
        on_executed: told every batch that was executed well.
    """

    def __init__(self, loop: AbstractEventLoop, on_executed: Executed) -> None:
        self._loop = loop
        self._on_executed = on_executed

    def give(self, jobs: Sequence[Job], result: Sequence[Outputs] | Exception) -> None:
        """Answer a batch, unless it failed and its jobs are to be tried apart."""
        if not isinstance(result, Exception):
            self._give(self._each(jobs, result))
        elif len(jobs) == 1 or concerns_all(result):
            for job in jobs:
                fail(job, restated(result))

    def give_in_turns(self, jobs: Sequence[Job], outputs: Sequence[Outputs], then: Callable[[], None]) -> None:
        """Answer a batch, a few of it in each turn of the loop, and call `then`."""
        self._turn(self._each(jobs, outputs), then)

    def _turn(self, each: list[tuple[Job, Outputs]], then: Callable[[], None]) -> None:
        self._give(each[:AT_ONCE])
        if len(each) > AT_ONCE:
            self._loop.call_soon(self._turn, each[AT_ONCE:], then)
        else:
            then()

    def _each(self, jobs: Sequence[Job], outputs: Sequence[Outputs]) -> list[tuple[Job, Outputs]]:
        """Who gets what; nobody anything if that cannot be told."""
        try:
            self._on_executed(cast(Batch, jobs[0].batch))
            return list(zip(jobs, outputs, strict=True))
        except Exception as error:  # whatever goes wrong here, nobody is left waiting
            for job in jobs:
                fail(job, restated(error))
            return []

    def _give(self, each: Sequence[tuple[Job, Outputs]]) -> None:
        for job, outputs in each:
            try:
                if not job.receiver.done():
                    job.receiver.set_result(outputs)
            except Exception as error:  # nor does one receiver's fault concern another
                fail(job, restated(error))


def fail(job: Job, error: Exception) -> None:
    """Answer a job with an error, if anybody still waits for it."""
    if not job.receiver.done():
        job.receiver.set_exception(error)


def concerns_all(error: Exception) -> bool:
    """Whether the fault lies where a batch was executed, and in none of its requests: no use in trying them apart."""
    return isinstance(error, GatewayError)
