"""The client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc

from tensorgate_client import calls, streaming
from tensorgate_client.calls import Inputs
from tensorgate_client.errors import InferenceError
from tensorgate_client.session import Client, Deadline, Session, Steps, looks_like
from tensorgate_client.streaming import Arrival, BatchStream, StreamResult
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub

P = ParamSpec("P")
R = TypeVar("R")

_FAREWELL_S = 5
"""How long a stream's end waits for its reading thread."""


def _blocking(call: Callable[Concatenate[Session, P], Steps[R]]) -> Callable[Concatenate[InferenceClient, P], R]:
    """One of `calls` as a method that waits for its result."""

    @looks_like(call)
    def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(call(self._session, *args, **kwargs))

    return method


def _streaming(
    call: Callable[Concatenate[Session, P], BatchStream],
) -> Callable[Concatenate[InferenceClient, P], Generator[StreamResult, None, None]]:
    """A stream as a generator of its results."""

    @looks_like(call, "Generator[StreamResult, None, None]")
    def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> Generator[StreamResult, None, None]:
        books = call(self._session, *args, **kwargs)
        if not isinstance(books.batches, Iterable):
            kind = type(books.batches).__name__
            raise TypeError(f"batches: expected an iterable, got {kind}; tensorgate_client.aio takes async ones")
        return _Stream(self, books, iter(books.batches)).results()

    return method


class InferenceClient(Client):
    """Calls an inference server over the Open Inference Protocol v2; `with` closes its connection.

    Threads may share it; a stream is for the one thread that iterates over it. A process that forks makes its clients
    afterwards.
    """

    infer = _blocking(calls.infer)
    metadata = _blocking(calls.metadata)
    config = _blocking(calls.config)
    statistics = _blocking(calls.statistics)
    index = _blocking(calls.index)
    load = _blocking(calls.load)
    unload = _blocking(calls.unload)
    is_live = _blocking(calls.is_live)
    is_ready = _blocking(calls.is_ready)
    model_ready = _blocking(calls.model_ready)
    stream = _streaming(streaming.stream)

    def close(self) -> None:
        """Close the connection; calls under way, and later ones, fail with CANCELLED."""
        self._session.closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, options: list[tuple[str, Any]]) -> None:
        self._channel = blocking_channel(self._session, options)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def _run(self, steps: Steps[R]) -> R:
        try:
            rpc = next(steps)
            while True:
                try:
                    self._session.check(rpc.deadline)
                    response = getattr(self._stub, rpc.name)(
                        rpc.request, metadata=self._session.headers(), **rpc.options
                    )
                except InferenceError as error:
                    rpc = steps.throw(error)
                except grpc.RpcError as error:
                    rpc = steps.throw(_failure(error, self._session, rpc.deadline))
                else:
                    rpc = steps.send(response)
        except StopIteration as done:
            return cast("R", done.value)


class _Stream:
    """A stream under way: gRPC's thread takes batches, ours what comes back, and the caller's hands results out."""

    def __init__(self, client: InferenceClient, books: BatchStream, batches: Iterator[Inputs]) -> None:
        self._client = client
        self._books = books
        self._batches = batches
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self._room = Semaphore(books.window)
        self._left = False

    def results(self) -> Generator[StreamResult, None, None]:
        """The results, until everything is answered or the caller leaves."""
        client, books = self._client, self._books
        client._run(books.check_model())
        headers = client._session.headers()
        call = client._stub.ModelStreamInfer(self._requests(), timeout=books.timeout, metadata=headers)
        reader = Thread(target=self._read, args=(call,), name="tensorgate-stream", daemon=True)
        reader.start()
        try:
            while not books.over:
                for result in books.settle(self._arrivals.get()):
                    self._room.release()
                    yield result
        finally:
            self._left = True
            self._room.release()
            call.cancel()
            # An interrupt inside grpc can leave one of its locks taken, so that its threads never hear of the end.
            reader.join(_FAREWELL_S)

    def _requests(self) -> Iterator[pb.ModelInferRequest]:
        while self._room.acquire() and not self._left:
            try:
                request = self._take()
            except BaseException as error:  # whatever it is, it is the caller's
                self._arrivals.put(error)
                return
            if request is None:
                return
            if isinstance(request, StreamResult):
                self._arrivals.put(request)
            else:
                yield request

    def _take(self) -> pb.ModelInferRequest | StreamResult | None:
        for inputs in self._batches:
            return self._client._run(self._books.take(inputs))
        self._books.finish()
        return None

    def _read(self, call: Any) -> None:
        for arrival in answers(call, self._client._session, self._books.deadline):
            self._arrivals.put(arrival)


def blocking_channel(session: Session, options: list[tuple[str, Any]]) -> grpc.Channel:
    """A channel to the session's server; it connects when it is used."""
    if session.tls:
        return grpc.secure_channel(session.address, session.tls.credentials(), options)
    return grpc.insecure_channel(session.address, options)


def answers(call: Any, session: Session, deadline: Deadline | None) -> Iterator[Arrival]:
    """What comes back on a stream, and how it ends: None or the error."""
    try:
        yield from call
        yield None
    except grpc.RpcError as error:
        yield _failure(error, session, deadline)


def _failure(error: grpc.RpcError, session: Session, deadline: Deadline | None) -> InferenceError:
    status = cast("grpc.Call", error)
    return session.failure(status.code(), status.details(), deadline)
