"""Where a batch runs: threads that each own one instance of a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from backends import base
from gateway.batch import Batch, Execute, Outputs
from gateway.context import BatchContext
from gateway.workspace import Workspace

T = TypeVar("T")

Ended: TypeAlias = Callable[[list[Outputs] | Exception], None]
"""Told how a batch ended: each request's outputs, or the backend's exception."""


class Instance(Protocol):
    """Runs one batch at a time, on a thread here or anywhere else.

    Attributes:
        inline: whether `run_here` may be used.
    """

    inline: bool

    @property
    def available(self) -> bool:
        """Whether it is there; what runs elsewhere may be away for a while, and batches then take longer."""
        ...

    def run(self, batch: Batch, ended: Ended) -> None:
        """Start the batch; `ended` is called on the event loop, never before this returns."""
        ...

    def run_here(self, batch: Batch) -> list[Outputs]:
        """Execute the batch at once, on the event loop's own thread: worth it where handing it over takes longer.

        Raises:
            Exception: the backend's.
        """
        ...

    async def aclose(self) -> None:
        """Free the instance; called once, when nothing runs."""
        ...


class Worker:
    """A daemon thread that calls what it is given, in order.

    An executor's threads would be joined at exit: a model stuck in native code could then keep a stopped server alive.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.name = name
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Worker {self._thread.name!r} waiting={self._tasks.qsize()}>"

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call `function` on the thread; cancelling the future drops a call that has not begun."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.call(lambda: None if future.cancelled() else function(), partial(_settle, future))
        return future

    def call(self, function: Callable[[], T], ended: Callable[[T | Exception], None]) -> None:
        """Call `function` on the thread, then `ended` with what it gave or raised on the running loop."""
        self._tasks.put(partial(_call, asyncio.get_running_loop(), function, ended))

    def stop(self) -> None:
        """End the thread after the calls it has already been given."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # or an idle thread would keep the last batch alive


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], T], ended: Callable[[T | Exception], None]) -> None:
    result: T | Exception
    try:
        result = function()
    except BaseException as error:  # whatever a runtime raises belongs to the caller, not to this thread
        result = presentable(error)
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(ended, result)
    del result  # its traceback has this frame: a cycle that would keep the batch until the next collection


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def presentable(error: BaseException) -> Exception:
    """The error, or one by its name: a future refuses StopIteration, and some exceptions are broken themselves."""
    with suppress(Exception):
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            str(error)
            return error
    return RuntimeError(type(error).__name__)


class ThreadInstance:
    """A backend's instance on a thread of its own.

    Attributes:
        worker: the thread.
        inline: whether the backend allows other threads, and waits for nothing.
    """

    def __init__(
        self, worker: Worker, instance: base.Instance, *, inline: bool = False, contextual: bool = False
    ) -> None:
        self.worker = worker
        self.inline = inline and not contextual
        self._contextual = contextual
        self._instance = instance
        self._workspace = Workspace()

    @property
    def available(self) -> bool:
        """As `Instance.available`: as long as this process is."""
        return True

    @classmethod
    async def start(cls, worker: Worker, model: base.Model) -> ThreadInstance:
        """Make the instance on the worker's thread, where it will also run and be closed."""
        try:
            inline, contextual = (bool(getattr(model, name, False)) for name in ("inline", "contextual"))  # optional
            return cls(worker, await worker.submit(model.instance), inline=inline, contextual=contextual)
        except BaseException:
            worker.stop()
            raise

    def run(self, batch: Batch, ended: Ended) -> None:
        """Execute on the thread."""
        if self._contextual:
            batch.context = BatchContext(batch)
        self.worker.call(partial(self.run_here, batch), ended)

    def submit(self, batch: Batch) -> asyncio.Future[list[Outputs]]:
        """Execute on the thread, for those who wait for it."""
        return self.worker.submit(partial(self.run_here, batch))

    def run_here(self, batch: Batch) -> list[Outputs]:
        """As `Instance.run_here`."""
        execute: Execute = self._instance.execute
        if batch.context is not None:
            execute = partial(execute, context=batch.context)  # type: ignore[call-arg]  # the contract's option
        return batch.run(execute, self._workspace, self.worker.name)

    async def aclose(self) -> None:
        """Close the backend's instance and end the thread."""
        try:
            await self.worker.submit(self._instance.close)
        finally:
            self.worker.stop()
