"""The client for programs with an asyncio event loop; its twin in `client.py` waits instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from tensorgate_client import calls
from tensorgate_client.calls import Inputs, Parameters, Target
from tensorgate_client.channel import channel_options
from tensorgate_client.errors import InferenceError
from tensorgate_client.session import Client, Deadline, Session, Steps
from tensorgate_client.streaming import Arrival, BatchStream, StreamResult
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub

__all__ = ["InferenceClient"]

P = ParamSpec("P")
R = TypeVar("R")

StreamCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.ModelInferRequest, pb.ModelStreamInferResponse]"


def _awaited(
    call: Callable[Concatenate[Session, P], Steps[R]],
) -> Callable[Concatenate[InferenceClient, P], Coroutine[Any, Any, R]]:
    """One of `calls` as a coroutine method."""

    @wraps(call)
    async def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(call(self._session, *args, **kwargs))

    return method


class InferenceClient(Client):
    """Calls an inference server over the Open Inference Protocol v2; `async with` closes its connection.

    It belongs to the event loop in which it is made. Cancelling a call cancels its RPC.
    """

    infer = _awaited(calls.infer)
    metadata = _awaited(calls.metadata)
    statistics = _awaited(calls.statistics)
    index = _awaited(calls.index)
    load = _awaited(calls.load)
    unload = _awaited(calls.unload)
    is_live = _awaited(calls.is_live)
    is_ready = _awaited(calls.is_ready)
    model_ready = _awaited(calls.model_ready)

    def stream(  # noqa: PLR0913  # what the protocol lets a caller say
        self,
        model: str,
        batches: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        window: int = 32,
        ordered: bool = True,
        version: str = "",
        outputs: Iterable[str] = (),
        parameters: Parameters | None = None,
        deadline_ms: float | None = None,
    ) -> AsyncGenerator[StreamResult, None]:
        """As `tensorgate_client.InferenceClient.stream`, with batches from an iterable or an async iterable.

        Batches are taken in a task of its own. A loop that is left early cancels the stream when Python finalizes the
        generator; `contextlib.aclosing` does it there and then.
        """
        target = Target(model, version, tuple(outputs), parameters or {})
        books = BatchStream(self._session, target, window=window, ordered=ordered, deadline=Deadline.after(deadline_ms))
        return self._stream(books, _asynchronous(batches))

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        for call in self._streams:  # gRPC does not find them by itself
            call.cancel()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, *, retry: bool) -> None:
        asyncio.get_running_loop()  # or gRPC would bind the channel to a loop that never runs
        session, options = self._session, channel_options(retry=retry)
        if session.tls:
            self._channel = grpc.aio.secure_channel(session.address, session.tls.credentials(), options)
        else:
            self._channel = grpc.aio.insecure_channel(session.address, options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._streams: set[StreamCall] = set()

    async def _run(self, steps: Steps[R]) -> R:
        try:
            rpc = next(steps)
            while True:
                try:
                    response = await getattr(self._stub, rpc.name)(
                        rpc.request, timeout=rpc.timeout, metadata=self._session.headers()
                    )
                except grpc.aio.AioRpcError as error:
                    rpc = steps.throw(self._failure(error, rpc.deadline))
                else:
                    rpc = steps.send(response)
        except StopIteration as done:
            return cast("R", done.value)

    def _failure(self, error: grpc.aio.AioRpcError, deadline: Deadline | None) -> InferenceError:
        return self._session.failure(error.code(), error.details(), deadline)

    async def _stream(self, books: BatchStream, batches: AsyncIterator[Inputs]) -> AsyncGenerator[StreamResult, None]:
        await self._run(books.check_model())
        arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        room = asyncio.Semaphore(books.window)

        async def send() -> None:
            while await room.acquire():
                try:
                    request = await self._take(books, batches)
                except BaseException as error:  # whatever it is, it is the caller's
                    arrivals.put_nowait(error)
                    return
                if request is None:
                    break
                if isinstance(request, StreamResult):
                    arrivals.put_nowait(request)
                else:
                    await call.write(request)
            await call.done_writing()

        call = self._stub.ModelStreamInfer(timeout=books.timeout, metadata=self._session.headers())
        self._streams.add(call)
        tasks = [asyncio.create_task(work) for work in (send(), self._read(call, arrivals, books.deadline))]
        try:
            while (arrival := await arrivals.get()) is not None:
                if isinstance(arrival, BaseException):
                    raise arrival
                for result in books.settle(arrival):
                    room.release()
                    yield result
            books.ended()
        finally:
            self._streams.discard(call)
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # a write to a broken stream fails; _read knows why

    async def _take(
        self, books: BatchStream, batches: AsyncIterator[Inputs]
    ) -> pb.ModelInferRequest | StreamResult | None:
        async for inputs in batches:
            return await self._run(books.take(inputs))
        books.finish()
        return None

    async def _read(self, call: StreamCall, arrivals: asyncio.Queue[Arrival], deadline: Deadline | None) -> None:
        status = _status_of(call)
        try:
            with suppress(grpc.aio.AioRpcError):
                async for response in call:
                    arrivals.put_nowait(response)
            code, details = await status
            ended = code is grpc.StatusCode.OK
            arrivals.put_nowait(None if ended else self._session.failure(code, details, deadline))
        except asyncio.CancelledError:  # the call's, by this stream or by `close`
            arrivals.put_nowait(InferenceError(grpc.StatusCode.CANCELLED, "the client was closed"))


def _status_of(call: StreamCall) -> asyncio.Future[tuple[grpc.StatusCode, str | None]]:
    """The status that the server ends `call` with.

    When a write fails because the call is ending, grpc.aio overwrites that status with one of its own (grpc issue
    36066). Callbacks see both.
    """
    status: asyncio.Future[tuple[grpc.StatusCode, str | None]] = asyncio.get_running_loop().create_future()

    def note(_: object) -> None:
        code, details = _at_once(call.code()), _at_once(call.details())
        if details != "Internal error from Core" and not status.done():
            status.set_result((code, details))

    call.add_done_callback(note)
    return status


def _at_once(answer: Coroutine[Any, Any, R]) -> R:
    """What a coroutine returns that has nothing to wait for."""
    try:
        answer.send(None)
    except StopIteration as done:
        return cast("R", done.value)
    raise RuntimeError("the call is not done")


def _asynchronous(batches: AsyncIterable[Inputs] | Iterable[Inputs]) -> AsyncIterator[Inputs]:
    return aiter(batches) if isinstance(batches, AsyncIterable) else _without_waiting(iter(batches))


async def _without_waiting(batches: Iterator[Inputs]) -> AsyncIterator[Inputs]:
    for inputs in batches:
        yield inputs
