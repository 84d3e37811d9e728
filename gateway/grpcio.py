"""The transport of grpc.aio, which always works."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import grpc

from gateway.services import Services
from gateway.status import Status
from gateway.transport import CannotListen, Method, OpenStream, Shortcut, carry

_log = logging.getLogger(__name__)

_SERVING = "AioServer._server_main_loop"
"""The coroutine that a grpc.aio server serves in: nothing else tells at once that it has ended."""

_RETRY_S = 0.05

_STREAMS = 8192
"""Requests in flight on a connection; an open one costs up to 36 KB, also one that never sends anything. grpc.aio
refuses what is beyond even from clients that keep to what they were told, so that it is more than these ever have."""


def aio_server(max_message_bytes: int, *, shares_port: bool = False) -> grpc.aio.Server:
    """A grpc.aio server with the options that a gateway needs."""
    return grpc.aio.server(
        options=[
            ("grpc.so_reuseport", int(shares_port)),  # or a second server would silently share the port
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_concurrent_streams", _STREAMS),
            # Above its own small limits grpc.aio answers bursts with a random CANCELLED.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 200_000),
            # Clients that keep connections alive through balancers are thrown off by default.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


class GrpcioTransport:
    """grpc.aio alone.

    A request whose path is not UTF-8 ends the serving of a grpc.aio newer than 1.78. What it has begun it finishes;
    another server takes its place, before it closes the port.

    Args:
        services: every other service.
        methods: unary RPCs by path.
        streams: bidirectional RPCs by path.
        shortcuts: for unary RPCs, by path.
        max_message_bytes: of a request or response.
    """

    def __init__(
        self,
        services: Services,
        methods: Mapping[str, Method],
        streams: Mapping[str, OpenStream],
        shortcuts: Mapping[str, Shortcut],
        max_message_bytes: int,
    ) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            **{
                path: grpc.unary_unary_rpc_method_handler(_unary(method, shortcuts.get(path)))
                for path, method in methods.items()
            },
            **{path: grpc.stream_stream_rpc_method_handler(_streaming(opened)) for path, opened in streams.items()},
        }
        # Never as registered methods: a newer grpc.aio that fails would write to memory that it has freed.
        self._handlers = [*_by_service(handlers), *services.handlers]
        self._limit = max_message_bytes
        self._server = self._new(shares_port=False)
        self._address = ""
        self._closing = False
        self._ending: dict[asyncio.Task[None], grpc.aio.Server] = {}
        self._starting: asyncio.Task[None] | None = None  # a loop alone would not keep it

    def _new(self, *, shares_port: bool) -> grpc.aio.Server:
        server = aio_server(self._limit, shares_port=shares_port)
        server.add_generic_rpc_handlers(self._handlers)
        return server

    def bind(self, address: str) -> int:
        """As `Transport.bind`."""
        try:
            port = int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise CannotListen(address) from error
        self._address = f"{address.rpartition(':')[0]}:{port}"
        return port

    async def start(self) -> None:
        """As `Transport.start`."""
        others = asyncio.all_tasks()
        await self._server.start()
        for task in asyncio.all_tasks() - others:
            if getattr(task.get_coro(), "__qualname__", "") == _SERVING:
                task.add_done_callback(self._broken)

    def _broken(self, serving: asyncio.Task[Any]) -> None:
        """Called when the server no longer serves, which it will only learn in the loop's next round."""
        if self._closing or serving.cancelled():
            return
        _log.error("grpc.aio has failed at a request, another server takes its place: %r", serving.exception())
        self._end(self._server)
        self._server = self._new(shares_port=True)
        self._take_over()

    def _take_over(self) -> None:
        """Listen with the new server, while the old one still does: no client finds the port closed."""
        if self._closing:
            return
        port = int(self._address.rpartition(":")[2])
        try:
            share_port(port, on=True)
            self.bind(self._address)
            share_port(port, on=False)
        except (CannotListen, OSError) as error:  # out of files, say
            _log.error("cannot listen on %s, trying again: %r", self._address, error)
            asyncio.get_running_loop().call_later(_RETRY_S, self._take_over)
            return
        self._starting = asyncio.create_task(self.start())

    def _end(self, server: grpc.aio.Server) -> None:
        """Take no more requests; what has begun goes on."""
        task = asyncio.create_task(server.stop(inf))
        self._ending[task] = server
        task.add_done_callback(self._ending.pop)

    def turn_away(self) -> None:
        """As `Transport.turn_away`: connections are told to open no further streams."""
        self._closing = True
        self._end(self._server)

    async def sent(self) -> None:
        """As `Transport.sent`: at once."""

    async def stop(self, grace_s: float | None) -> None:
        """As `Transport.stop`."""
        self._closing = True
        ending = list(self._ending)
        await asyncio.gather(*(server.stop(grace_s) for server in {self._server, *self._ending.values()}))
        await asyncio.gather(*ending)


def _by_service(handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, handler in handlers.items():
        service, name = path.strip("/").split("/")
        services.setdefault(service, {})[name] = handler
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in services.items()]


def share_port(port: int, *, on: bool) -> None:
    """Whether those of this process's sockets that listen on `port` let others of its user listen there, too.

    Raises:
        OSError: this process has as many files open as it may.
    """
    for number in Path("/dev/fd").iterdir():
        with suppress(OSError):  # no socket
            found = socket.socket(fileno=int(number.name))
            with suppress(OSError):
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)
            found.detach()


def _unary(method: Method, shortcut: Shortcut | None) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if shortcut and (response := shortcut(message)) is not None:
            return response
        answered: asyncio.Future[bytes | Status] = asyncio.get_running_loop().create_future()
        answer_with = partial(_resolve, answered)
        pending = method(message, _deadline(context), context.invocation_metadata() or (), answer_with)
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


def _resolve(answered: asyncio.Future[bytes | Status], answer: bytes | Status) -> None:
    if not answered.done():  # or its caller has just gone, and the handler has not been told
        answered.set_result(answer)


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


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    left = context.time_remaining()
    return inf if left is None else time.perf_counter() + left


def _end_with(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> None:
    context.set_code(status.code)  # `abort` raises, and keeps the request in a cycle with what it raised
    context.set_details(status.details)
