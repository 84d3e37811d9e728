"""The client for programs with an asyncio event loop; its twin in `client.py` waits instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc
import grpc.aio
from grpc import StatusCode

from tensorgate_client import calls, streaming
from tensorgate_client.calls import Inputs
from tensorgate_client.client import answers, blocking_channel
from tensorgate_client.errors import InferenceError
from tensorgate_client.session import CLOSED, Client, Session, Steps, looks_like
from tensorgate_client.streaming import Arrival, BatchStream, StreamResult
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub

__all__ = ["InferenceClient"]

P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    call: Callable[Concatenate[Session, P], Steps[R]],
) -> Callable[Concatenate[InferenceClient, P], Coroutine[Any, Any, R]]:
    """One of `calls` as a coroutine method."""

    @looks_like(call)
    async def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(call(self._session, *args, **kwargs))

    return method


def _streaming(
    call: Callable[Concatenate[Session, P], BatchStream],
) -> Callable[Concatenate[InferenceClient, P], AsyncGenerator[StreamResult, None]]:
    """A stream as an async generator of its results."""

    @looks_like(call, "AsyncGenerator[StreamResult, None]")
    def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[StreamResult, None]:
        books = call(self._session, *args, **kwargs)
        return _Stream(self, books, _asynchronous(books.batches)).results()

    return method


class InferenceClient(Client):
    """Calls an inference server over the Open Inference Protocol v2; `async with` closes its connection.

    It belongs to the event loop in which it is made. Cancelling a call cancels its RPC.
    """

    infer = _awaited(calls.infer)
    metadata = _awaited(calls.metadata)
    config = _awaited(calls.config)
    statistics = _awaited(calls.statistics)
    index = _awaited(calls.index)
    load = _awaited(calls.load)
    unload = _awaited(calls.unload)
    is_live = _awaited(calls.is_live)
    is_ready = _awaited(calls.is_ready)
    model_ready = _awaited(calls.model_ready)
    stream = _streaming(streaming.stream)

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled, later ones fail with CANCELLED."""
        self._session.closed = True
        self._stream_channel.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, options: list[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()  # where there is none, gRPC would take one that never runs
        session = self._session
        if session.tls:
            self._channel = grpc.aio.secure_channel(session.address, session.tls.credentials(), options)
        else:
            self._channel = grpc.aio.insecure_channel(session.address, options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        # When a server ends a stream that is being written to, grpc.aio often loses its status and reports INTERNAL
        # (grpc issue 36066). So streams are calls of the other API, read by a thread, on a connection of their own.
        self._stream_channel = blocking_channel(session, options)
        self._stream_stub = GRPCInferenceServiceStub(self._stream_channel)

    async def _run(self, steps: Steps[R]) -> R:
        try:
            rpc = next(steps)
            while True:
                try:
                    self._session.check(rpc.deadline)
                    response = await getattr(self._stub, rpc.name)(
                        rpc.request, metadata=self._session.headers(), **rpc.options
                    )
                except InferenceError as error:
                    rpc = steps.throw(error)
                except grpc.aio.AioRpcError as error:
                    rpc = steps.throw(self._session.failure(error.code(), error.details(), rpc.deadline))
                except asyncio.CancelledError:
                    if not self._session.closed or cast("asyncio.Task[Any]", asyncio.current_task()).cancelling():
                        raise
                    rpc = steps.throw(InferenceError(StatusCode.CANCELLED, CLOSED))  # the call was, not its caller
                else:
                    rpc = steps.send(response)
        except StopIteration as done:
            return cast("R", done.value)


class _Stream:
    """A stream under way: a task takes batches, a thread what comes back, and the caller's task hands results out."""

    def __init__(self, client: InferenceClient, books: BatchStream, batches: AsyncIterator[Inputs]) -> None:
        self._client = client
        self._books = books
        self._batches = batches
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self._requests: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()  # never more than the window
        self._room = asyncio.Semaphore(books.window)
        self._silent = asyncio.Event()

    async def results(self) -> AsyncGenerator[StreamResult, None]:
        """The results, until everything is answered or the caller leaves."""
        client, books = self._client, self._books
        await client._run(books.check_model())
        requests, headers = iter(self._requests.get, None), client._session.headers()
        call = client._stream_stub.ModelStreamInfer(requests, timeout=books.timeout, metadata=headers)
        Thread(target=self._read, args=(call,), name="tensorgate-stream", daemon=True).start()
        sender = asyncio.create_task(self._send(), name="tensorgate-stream")
        try:
            while not books.over:
                for result in books.settle(await self._arrivals.get()):
                    self._room.release()
                    yield result
        finally:
            self._requests.put(None)
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, self._silent.wait(), return_exceptions=True)

    async def _send(self) -> None:
        while await self._room.acquire():
            try:
                request = await self._take()
            except BaseException as error:  # whatever it is, it is the caller's
                self._arrivals.put_nowait(error)
                return
            if isinstance(request, StreamResult):
                self._arrivals.put_nowait(request)
                continue
            self._requests.put(request)
            if request is None:
                return

    async def _take(self) -> pb.ModelInferRequest | StreamResult | None:
        async for inputs in self._batches:
            return await self._client._run(self._books.take(inputs))
        self._books.finish()
        return None

    def _read(self, call: Any) -> None:
        pass_on = self._client._loop.call_soon_threadsafe
        try:
            for arrival in answers(call, self._client._session, self._books.deadline):
                pass_on(self._arrivals.put_nowait, arrival)
        finally:
            pass_on(self._silent.set)


def _asynchronous(batches: AsyncIterable[Inputs] | Iterable[Inputs]) -> AsyncIterator[Inputs]:
    return aiter(batches) if isinstance(batches, AsyncIterable) else _without_waiting(iter(batches))


async def _without_waiting(batches: Iterator[Inputs]) -> AsyncIterator[Inputs]:
    for inputs in batches:
        yield inputs
