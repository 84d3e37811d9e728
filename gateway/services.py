"""Services written for grpc.aio's server, for the calls of our own transports: health and reflection come so."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
from grpc import StatusCode

from gateway.conversations import Conversation
from gateway.status import Status


class Services:
    """Stands where such services expect a server, to be added to it.

    Attributes:
        handlers: of all of them, as grpc.aio's server takes them.
    """

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """As `grpc.aio.Server`'s; generated code calls it."""
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """As `grpc.aio.Server`'s: the same handlers once more, for servers that look them up faster."""

    async def serve(self, call: Conversation) -> Status | None:
        """Answer a call; the status it ends with, None if all is well."""
        handler = self._find(call.path)
        if handler is None:
            return Status(StatusCode.UNIMPLEMENTED, f"this server has no method {call.path}")
        context = _Context(call, handler)
        try:
            await context.run()
        except _Aborted as aborted:
            return aborted.status
        return None

    def _find(self, path: str) -> Any:
        details = SimpleNamespace(method=path, invocation_metadata=())
        found = (handler.service(details) for handler in self.handlers)
        return next(filter(None, found), None)


class _Aborted(Exception):  # not for callers to see
    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class _Context:
    """What of grpc.aio's `ServicerContext` those services use."""

    def __init__(self, call: Conversation, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._call = call
        self._handler: Any = handler

    async def run(self) -> None:
        handler = self._handler
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        result = behavior(self._requests() if handler.request_streaming else await anext(self._requests()), self)
        if inspect.isasyncgen(result):
            async for response in result:
                await self.write(response)
            return
        response = await result
        if not handler.response_streaming:
            await self.write(response)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._call.read()) is not None:
            yield self._handler.request_deserializer(message)
        if not self._handler.request_streaming:
            await self.abort(StatusCode.INTERNAL, "the request is missing")

    async def write(self, response: Any) -> None:
        """Send a response."""
        await self._call.write(self._handler.response_serializer(response))

    async def abort(self, code: StatusCode, details: str = "") -> NoReturn:
        """End the call with a status."""
        raise _Aborted(Status(code, details))
