"""The blocking client and its aio twin behind one face, so that one test holds both to one contract."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any

import tensorgate_client


class Blocking:
    """The blocking client, as it is."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = tensorgate_client.InferenceClient(address, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def busy(self) -> int:
        """How many threads are busy with it."""
        return _streaming_threads()

    def end(self) -> None:
        """Close it."""
        self.client.close()


class Awaited:
    """The aio client in an event loop of its own, called from outside."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop")
        self._thread.start()
        try:
            self.client = self.run(self._make(address, options))
        except BaseException:
            self._stop()
            raise

    async def _make(self, address: str, options: dict[str, Any]) -> tensorgate_client.aio.InferenceClient:
        return tensorgate_client.aio.InferenceClient(address, **options)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *args, **options: self.run(method(*args, **options))

    def stream(self, model: str, batches: Iterable[Any], **options: Any) -> Iterator[tensorgate_client.StreamResult]:
        """As the blocking client's."""
        return self._results(self.client.stream(model, _asynchronous(batches), **options))

    def _results(self, results: Any) -> Iterator[tensorgate_client.StreamResult]:
        async def following() -> tensorgate_client.StreamResult | None:
            return await anext(results, None)

        try:
            while (result := self.run(following())) is not None:
                yield result
        finally:
            self.run(results.aclose())

    def busy(self) -> int:
        """How many threads and tasks are busy with it."""
        return _streaming_threads() + len(asyncio.all_tasks(self._loop))

    def end(self) -> None:
        """Close it and its loop."""
        self.run(self.client.close())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _streaming_threads() -> int:
    """Ours, and those in which gRPC takes a stream's requests, which it calls `_run` like one of each channel."""
    return sum("tensorgate" in thread.name or "_run" in thread.name for thread in threading.enumerate())


async def _asynchronous(batches: Iterable[Any]) -> AsyncIterator[Any]:
    """`batches`, which may block, without blocking the loop."""
    end = object()
    iterator = iter(batches)
    while (inputs := await asyncio.to_thread(next, iterator, end)) is not end:
        yield inputs


CLIENTS: dict[str, type[Blocking] | type[Awaited]] = {"blocking": Blocking, "aio": Awaited}
