"""The client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import wraps
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc

from tensorgate_client import calls
from tensorgate_client.calls import Inputs, Parameters, Target
from tensorgate_client.channel import channel_options
from tensorgate_client.errors import InferenceError
from tensorgate_client.session import Client, Deadline, Session, Steps
from tensorgate_client.streaming import Arrival, BatchStream, StreamResult
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(call: Callable[Concatenate[Session, P], Steps[R]]) -> Callable[Concatenate[InferenceClient, P], R]:
    """One of `calls` as a method that waits for its result."""

    @wraps(call)
    def method(self: InferenceClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(call(self._session, *args, **kwargs))

    return method


class InferenceClient(Client):
    """Calls an inference server over the Open Inference Protocol v2; `with` closes its connection.

    Threads may share it; a stream is for the one thread that iterates over it. A process that forks makes its clients
    afterwards.
    """

    infer = _blocking(calls.infer)
    metadata = _blocking(calls.metadata)
    statistics = _blocking(calls.statistics)
    index = _blocking(calls.index)
    load = _blocking(calls.load)
    unload = _blocking(calls.unload)
    is_live = _blocking(calls.is_live)
    is_ready = _blocking(calls.is_ready)
    model_ready = _blocking(calls.model_ready)

    def stream(  # noqa: PLR0913  # what the protocol lets a caller say
        self,
        model: str,
        batches: Iterable[Inputs],
        *,
        window: int = 32,
        ordered: bool = True,
        version: str = "",
        outputs: Iterable[str] = (),
        parameters: Parameters | None = None,
        deadline_ms: float | None = None,
    ) -> Generator[StreamResult, None, None]:
        """Run a model on many batches over one stream; results come while batches are sent.

        A batch that fails does not end the stream: its result raises when its outputs are read. Leaving the loop early,
        or closing what this returns, cancels the stream. Streams are not retried.

        Args:
            model: its name; each request must have one answer.
            batches: inputs as `infer` takes them. They are taken as there is room for them, in another thread; what
                this raises reaches the caller and ends the stream.
            window: most batches that are taken and not yet handed back as results.
            ordered: results in the order of the batches. False gives them as they are ready, where the server can.
            version: of the model, a decimal number as text; empty lets the server choose.
            outputs: names of those to return; none means all.
            parameters: of every request.
            deadline_ms: milliseconds that the whole stream may take; no limit by default.

        Returns:
            An iterator over the results, one for each batch.

        Raises:
            InferenceError: (while iterating) there is no such model, or the stream broke.
        """
        target = Target(model, version, tuple(outputs), parameters or {})
        books = BatchStream(self._session, target, window=window, ordered=ordered, deadline=Deadline.after(deadline_ms))
        return self._stream(books, iter(batches))

    def close(self) -> None:
        """Close the connection; calls under way fail with CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, *, retry: bool) -> None:
        session, options = self._session, channel_options(retry=retry)
        if session.tls:
            self._channel = grpc.secure_channel(session.address, session.tls.credentials(), options)
        else:
            self._channel = grpc.insecure_channel(session.address, options)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def _run(self, steps: Steps[R]) -> R:
        try:
            rpc = next(steps)
            while True:
                try:
                    response = getattr(self._stub, rpc.name)(
                        rpc.request, timeout=rpc.timeout, metadata=self._session.headers()
                    )
                except grpc.RpcError as error:
                    rpc = steps.throw(self._failure(error, rpc.deadline))
                else:
                    rpc = steps.send(response)
        except StopIteration as done:
            return cast("R", done.value)

    def _failure(self, error: grpc.RpcError, deadline: Deadline | None) -> InferenceError:
        status = cast("grpc.Call", error)
        return self._session.failure(status.code(), status.details(), deadline)

    def _stream(self, books: BatchStream, batches: Iterator[Inputs]) -> Generator[StreamResult, None, None]:
        self._run(books.check_model())
        arrivals: SimpleQueue[Arrival] = SimpleQueue()
        room = Semaphore(books.window)
        left = Event()

        def requests() -> Iterator[pb.ModelInferRequest]:
            while room.acquire() and not left.is_set():
                try:
                    request = self._take(books, batches)
                except BaseException as error:  # whatever it is, it is the caller's
                    arrivals.put(error)
                    return
                if request is None:
                    return
                if isinstance(request, StreamResult):
                    arrivals.put(request)
                else:
                    yield request

        call = self._stub.ModelStreamInfer(requests(), timeout=books.timeout, metadata=self._session.headers())
        reader = Thread(target=self._read, args=(call, arrivals, books.deadline), name="tensorgate-stream", daemon=True)
        reader.start()
        try:
            while (arrival := arrivals.get()) is not None:
                if isinstance(arrival, BaseException):
                    raise arrival
                for result in books.settle(arrival):
                    room.release()
                    yield result
            books.ended()
        finally:
            left.set()
            room.release()
            call.cancel()
            reader.join()

    def _take(self, books: BatchStream, batches: Iterator[Inputs]) -> pb.ModelInferRequest | StreamResult | None:
        for inputs in batches:
            return self._run(books.take(inputs))
        books.finish()
        return None

    def _read(self, call: Any, arrivals: SimpleQueue[Arrival], deadline: Deadline | None) -> None:
        try:
            for response in call:
                arrivals.put(response)
            arrivals.put(None)
        except grpc.RpcError as error:
            arrivals.put(self._failure(error, deadline))
