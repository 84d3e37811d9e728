"""Where a batch runs: threads that each own one instance of a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from backends import base
from gateway.batch import Batch, Outputs

T = TypeVar("T")


class Instance(Protocol):
    """Runs one batch at a time, on a thread here or anywhere else."""

    def run(self, batch: Batch) -> asyncio.Future[list[Outputs]]:
        """Start the batch, which stamps itself; the future holds each request's outputs or the backend's exception."""
        ...

    async def aclose(self) -> None:
        """Free the instance; called once, when nothing runs."""
        ...


class Worker:
    """A daemon thread that calls what it is given, in order.

    An executor's threads would be joined at exit: a model stuck in native code could then keep a stopped server alive.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Worker {self._thread.name!r} waiting={self._tasks.qsize()}>"

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call `function` on the thread; cancelling the future drops a call that has not begun."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.put((future, function))
        return future

    def stop(self) -> None:
        """End the thread after the calls it has already been given."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            if not future.cancelled():
                _call(future, function)
            del task, future, function  # or an idle thread would keep the last batch alive


def _call(future: asyncio.Future[T], function: Callable[[], T]) -> None:
    result: T | None = None
    failure: Exception | None = None
    try:
        result = function()
    except BaseException as error:  # whatever a runtime raises belongs to the caller, not to this thread
        failure = _presentable(error)
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(_settle, future, result, failure)
    failure = None  # its traceback has this frame: a cycle that would keep the batch until the next collection


def _settle(future: asyncio.Future[Any], result: object, failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def _presentable(error: BaseException) -> Exception:
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
    """

    def __init__(self, worker: Worker, instance: base.Instance) -> None:
        self.worker = worker
        self._instance = instance

    @classmethod
    async def start(cls, worker: Worker, model: base.Model) -> ThreadInstance:
        """Make the instance on the worker's thread, where it will also run and be closed."""
        try:
            return cls(worker, await worker.submit(model.instance))
        except BaseException:
            worker.stop()
            raise

    def run(self, batch: Batch) -> asyncio.Future[list[Outputs]]:
        """Execute on the thread."""
        return self.worker.submit(partial(batch.run, self._instance.execute))

    async def aclose(self) -> None:
        """Close the backend's instance and end the thread."""
        try:
            await self.worker.submit(self._instance.close)
        finally:
            self.worker.stop()
