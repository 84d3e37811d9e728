"""What carries the RPCs: grpc.aio, and in front of it, where it is installed, a server in Rust (`native.py`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any, Protocol, TypeAlias

import grpc

from gateway.status import Status
from gateway.streaming import Stream
from gateway.tracing import Metadata

Answer: TypeAlias = Callable[[bytes | Status], None]
"""Takes a call's serialized response or status, once."""


class Pending(Protocol):
    """A call that has not been answered."""

    def cancel(self) -> object:
        """Its caller is gone: no answer any more."""
        ...


Method: TypeAlias = Callable[[bytes, float, Metadata, Answer], Pending | None]
"""A unary RPC: begins a call with its serialized request, its caller's deadline (`time.perf_counter`), its metadata and
what takes the answer; None if that has been called already."""

OpenStream: TypeAlias = Callable[[float, Metadata], Stream]
"""A bidirectional RPC: the caller's deadline (`time.perf_counter`) and metadata to what becomes of its messages."""


class Messages(Protocol):
    """A call whose messages pass as bytes; grpc.aio's context is one."""

    async def read(self) -> Any:
        """The next message; after the last one something else."""
        ...

    async def write(self, message: bytes, /) -> None:
        """Send a message; returns when there is room for another."""
        ...


class CannotListen(Exception):
    """The address is taken, or not this machine's."""


class Transport(Protocol):
    """Listens on one address, from `start` to `stop`."""

    def bind(self, address: str) -> int:
        """Take the address; the port.

        Raises:
            CannotListen: it cannot be had.
        """
        ...

    async def start(self) -> None:
        """Answer what arrives."""
        ...

    def turn_away(self) -> None:
        """Send clients elsewhere where the transport can; what has arrived is still answered."""
        ...

    async def sent(self) -> None:
        """Return when the answers to all unary calls have left, if `stop` would not wait for them."""
        ...

    async def stop(self, grace_s: float | None) -> None:
        """Close every connection, at the latest after `grace_s`."""
        ...


def aio_server(max_message_bytes: int) -> grpc.aio.Server:
    """A grpc.aio server with the options that a gateway needs."""
    return grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # or a second server would silently share the port
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Above its own small limits grpc.aio answers bursts with a random CANCELLED.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 200_000),
            # Clients that keep connections alive through balancers are thrown off by default.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def _add(server: grpc.aio.Server, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, handler in handlers.items():
        service, name = path.strip("/").split("/")
        services.setdefault(service, {})[name] = handler
    for service, methods in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


class GrpcioTransport:
    """grpc.aio alone.

    Args:
        server: with every other service.
        methods: unary RPCs by path.
        streams: bidirectional RPCs by path.
    """

    def __init__(
        self, server: grpc.aio.Server, methods: Mapping[str, Method], streams: Mapping[str, OpenStream]
    ) -> None:
        _add(server, {path: grpc.unary_unary_rpc_method_handler(_unary(method)) for path, method in methods.items()})
        _add(
            server,
            {path: grpc.stream_stream_rpc_method_handler(_streaming(opened)) for path, opened in streams.items()},
        )
        self._server = server
        self._stopping: asyncio.Task[None] | None = None

    def bind(self, address: str) -> int:
        """As `Transport.bind`."""
        try:
            return int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise CannotListen(address) from error

    async def start(self) -> None:
        """As `Transport.start`."""
        await self._server.start()

    def turn_away(self) -> None:
        """As `Transport.turn_away`: connections are told to open no further streams."""
        self._stopping = asyncio.create_task(self._server.stop(inf))

    async def sent(self) -> None:
        """As `Transport.sent`: at once."""

    async def stop(self, grace_s: float | None) -> None:
        """As `Transport.stop`."""
        await self._server.stop(grace_s)
        if self._stopping:
            await self._stopping


def _unary(method: Method) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        answered: asyncio.Future[bytes | Status] = asyncio.get_running_loop().create_future()
        pending = method(message, _deadline(context), context.invocation_metadata() or (), answered.set_result)
        try:
            answer = await answered
        except asyncio.CancelledError:
            if pending:
                pending.cancel()
            raise
        if isinstance(answer, Status):
            _end_with(context, answer)
            return b""
        return answer

    return handle


def _streaming(open_stream: OpenStream) -> Callable[[object, Any], Awaitable[None]]:
    async def handle(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            with open_stream(_deadline(context), context.invocation_metadata() or ()) as stream:
                status = await carry(stream, context)
        except grpc.aio.InternalError:  # it was cancelled while a response was on its way: nobody is there to be told
            return
        if status:
            _end_with(context, status)

    return handle


async def carry(stream: Stream, call: Messages) -> Status | None:
    """Take a stream's messages from a call and bring it the responses; the status to end with, None if all is well."""
    reading = asyncio.create_task(_read(stream, call))
    try:
        while isinstance(response := await stream.next(), bytes):
            await call.write(response)
            stream.sent(response)
    finally:
        reading.cancel()
    return response


async def _read(stream: Stream, call: Messages) -> None:
    try:
        # An empty message is one, too: only the end is not bytes.
        while isinstance(message := await call.read(), bytes):
            stream.receive(message)
            if stream.full:
                await stream.room()
    except Exception as error:
        stream.break_off(error)
    finally:
        stream.end()


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    left = context.time_remaining()
    return inf if left is None else time.perf_counter() + left


def _end_with(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> None:
    context.set_code(status.code)  # `abort` raises, and keeps the request in a cycle with what it raised
    context.set_details(status.details)
