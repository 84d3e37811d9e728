"""Virtual time: an event loop that jumps to its next timer instead of waiting, and instances that take virtual seconds.

Nothing sleeps, so a test of seconds takes milliseconds, and what happens at the same moment always happens at the same
moment. A scenario that would hang for ever fails at once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import selectors
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.batch import Batch, Outputs
from gateway.instances import Ended
from gateway.workspace import Workspace

START = 1024.0
"""What the clock shows at first. Not 0, which code may take for "never"; halves and quarters stay exact."""

_MOST_ROUNDS = 100_000  # of the loop at one moment


class _JumpingSelector(selectors.SelectSelector):
    """Advances the clock by what it is asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.rounds = 0
        self.rounds_at_this_moment = 0
        self.describe: Callable[[], str] = str
        self.broken_off: BaseException | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.broken_off:
            raise self.broken_off
        if timeout is None:
            raise AssertionError(f"deadlock: nothing is ready and no timer is set; {self.describe()}")
        self.rounds += 1
        self.rounds_at_this_moment += 1
        if timeout > 0:
            self.now = max(self.now + timeout, math.nextafter(self.now, math.inf))
            self.rounds_at_this_moment = 0
        if self.rounds_at_this_moment > _MOST_ROUNDS:
            raise AssertionError(f"the loop spins without time going by; {self.describe()}")
        return []


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; `errors` are those that nobody caught or looked at."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._jumping.describe = self._describe
        super().__init__(self._jumping)
        self.errors: list[dict[str, Any]] = []
        self.watched: list[object] = []
        self.set_exception_handler(lambda _, context: self._note(context))

    def time(self) -> float:
        """The virtual clock."""
        return self._jumping.now

    def block(self, seconds: float) -> None:
        """What runs takes so long, and nothing else happens meanwhile."""
        self._jumping.now += seconds

    @property
    def rounds(self) -> int:
        """How often the loop had something to do."""
        return self._jumping.rounds

    def _note(self, context: dict[str, Any]) -> None:
        self.errors.append(context)
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, Exception):
            self._jumping.broken_off = error  # pytest's time-out, which asyncio would go on after

    def _describe(self) -> str:
        tasks = [str(task.get_coro()) for task in asyncio.all_tasks(self)]
        return f"watched: {self.watched}; tasks: {tasks}; errors: {self.errors}"


def run_on_fake_clock(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario; it must leave no task behind and no exception that nobody looked at."""
    gc.freeze()  # what is there already need not be looked at below
    try:
        loop = FakeLoop()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(scenario())
            left = [str(task.get_coro()) for task in asyncio.all_tasks(loop)]
        loop.watched.clear()
        gc.collect()  # only then futures in reference cycles complain
    finally:
        gc.unfreeze()
    assert not left, f"tasks left behind: {left}"
    assert not loop.errors, f"errors that nobody caught: {loop.errors}"


def on_fake_clock(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test one that pytest runs, on virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_on_fake_clock(lambda: test(*args, **kwargs))

    return run


def fake_loop() -> FakeLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeLoop)
    return loop


def now() -> float:
    """Virtual seconds since the scenario began."""
    return fake_loop().time() - START


async def until(seconds: float) -> None:
    """Go on when that many virtual seconds have passed since the scenario began, after what is due at that moment."""
    await asyncio.sleep(seconds - now())
    for _ in range(20):
        await asyncio.sleep(0)


async def settled() -> None:
    """Let everything happen that is due at this moment."""
    await until(now())


@dataclass
class Run:
    """One execution: the batch, when it started and ended, what it ended with, whether the event loop did it itself."""

    batch: Batch
    started: float
    ended: float = math.inf
    error: BaseException | None = None
    here: bool = False

    def over(self, result: list[Outputs] | Exception) -> None:
        """Note the end."""
        self.ended = now()
        self.error = result if isinstance(result, Exception) else None


class FakeInstance:
    """An instance that takes virtual time.

    Args:
        execute: the model.
        takes: virtual seconds that a batch needs.
        before: sees each batch before it starts; raising makes `run` itself raise, a result is how the batch ends.
        inline: whether batches may run on the event loop, where they take no virtual time.
        processor_us: processor time that a batch is said to take.
    """

    def __init__(
        self,
        execute: Callable[[dict[str, Any]], Mapping[str, Any]],
        takes: Callable[[Batch], float] = lambda _: 1.0,
        before: Callable[[Batch], list[Outputs] | Exception | None] = lambda _: None,
        *,
        inline: bool = False,
        processor_us: Callable[[], int] = lambda: 10,
    ) -> None:
        self.execute = execute
        self.takes = takes
        self.before = before
        self.runs: list[Run] = []
        self.closed = False
        self.inline = inline
        self.workspace = Workspace()
        self.processor_us = processor_us
        self._busy = False

    def run(self, batch: Batch, ended: Ended) -> None:
        """Begin; the end comes in virtual time."""
        run, given = self._begun(batch)
        if given is not None:
            run.over(given)
            asyncio.get_running_loop().call_soon(ended, given)
            return
        self._busy = True
        asyncio.get_running_loop().call_later(self.takes(batch), self._end, run, ended)

    def run_here(self, batch: Batch) -> list[Outputs]:
        """Begin and end."""
        assert self.inline, "this instance keeps to its thread"
        run, given = self._begun(batch)
        run.here = True
        result = self._result(batch) if given is None else given
        run.over(result)
        if isinstance(result, Exception):
            raise result
        return result

    def _begun(self, batch: Batch) -> tuple[Run, list[Outputs] | Exception | None]:
        assert not self._busy, "an instance runs one batch at a time"
        assert not self.closed, "a closed instance runs nothing"
        run = Run(batch, now())
        self.runs.append(run)
        try:
            return run, self.before(batch)
        except Exception as error:
            run.over(error)
            raise

    def _end(self, run: Run, ended: Ended) -> None:
        self._busy = False
        result = self._result(run.batch)
        run.over(result)
        ended(result)

    def _result(self, batch: Batch) -> list[Outputs] | Exception:
        try:
            return batch.run(self.execute, self.workspace)
        except Exception as error:
            return error
        finally:
            batch.execution.processor_ns = 1000 * self.processor_us()

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True
