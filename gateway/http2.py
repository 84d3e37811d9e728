"""gRPC calls over HTTP/2 on a socket that only this process knows: streams, as the transport in Rust hands them on.

Whatever has arrived is taken apart at once, and whatever is ready leaves together. Frames and header compression are
the package h2's; what a call looks like in them is the document "gRPC over HTTP2".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from gateway.http2_call import WINDOW, Call
from gateway.status import Status
from gateway.transport import STOPPED, end_of

Handler: TypeAlias = Callable[[Call], Awaitable[Status | None]]
"""Serves a call; returns the status to end it with, None if all is well."""

_log = logging.getLogger(__name__)

_MOST_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = (1 << 16) - 1
_FRAME = 1 << 20

# What the transport in front has checked is not checked again: a fault found here would end the calls of everybody.
_CONFIGURATION = H2Configuration(
    client_side=False, header_encoding=None, validate_inbound_headers=False, normalize_inbound_headers=False
)


class Http2Server:
    """Listens on a Unix socket.

    Args:
        handler: serves each call.
        max_message_bytes: of a request.
    """

    def __init__(self, handler: Handler, max_message_bytes: int) -> None:
        self._handler = handler
        self._limit = max_message_bytes
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<Http2Server calls={len(self._tasks())}>"

    async def start(self, socket: Path) -> None:
        """Take connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, socket)

    async def stop(self, grace_s: float | None) -> None:
        """Let calls end, cut them off after `grace_s`."""
        if self._server:
            self._server.close()
        if (tasks := self._tasks()) and grace_s:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in (tasks := self._tasks()):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for connection in list(self._connections):
            connection.close()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for connection in self._connections for task in connection.tasks.values()]

    def _connection(self) -> _Connection:
        return _Connection(self._handler, self._limit, self._connections)


class _Connection(asyncio.Protocol):
    def __init__(self, handler: Handler, limit: int, connections: set[_Connection]) -> None:
        self._handler = handler
        self._limit = limit
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._h2 = H2Connection(_CONFIGURATION)
        self._calls: dict[int, Call] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._sending: dict[int, Call] = {}  # whose messages wait to leave
        self._scheduled = False
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._h2.local_settings.update(
            {
                SettingCodes.MAX_FRAME_SIZE: _FRAME,
                SettingCodes.MAX_CONCURRENT_STREAMS: 1 << 20,  # the transport in front has a limit of its own
            }
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_MOST_WINDOW - _DEFAULT_WINDOW)
        self._schedule()

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        self._calls.clear()
        for task in list(self.tasks.values()):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            _log.error("a connection is closed: %s", error)
            self.close()
            return
        for event in events:
            self._handle(event)
        self._schedule()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._schedule()

    def close(self) -> None:
        with suppress(ProtocolError):
            self._h2.close_connection()
        self._transport.write(self._h2.data_to_send())
        self._transport.close()

    def _wants_to_send(self, number: int) -> None:
        if call := self._calls.get(number):
            self._sending[number] = call
        self._schedule()

    def _schedule(self) -> None:
        """Send what is ready, once everything that becomes ready at this moment is."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if not self._may_write or self._transport.is_closing():
            return
        for number, call in list(self._sending.items()):
            if call.send():
                del self._sending[number]
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def _handle(self, event: Event) -> None:
        match event:
            case DataReceived():
                if call := self._calls.get(event.stream_id):
                    call.receive(event.data, event.flow_controlled_length)
                else:  # sent before it was told that the call is over
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case RequestReceived():
                self._begin(event)
            case StreamEnded():
                if call := self._calls.get(event.stream_id):
                    call.receive_end()
            case StreamReset():
                self._sending.pop(event.stream_id, None)
                self._calls.pop(event.stream_id, None)
                if task := self.tasks.get(event.stream_id):
                    task.cancel()

    def _begin(self, event: RequestReceived) -> None:
        number = event.stream_id
        # Clients may send what is no text; the type that h2 gives headers does not know of its own setting.
        headers = {str(name, "utf-8", "replace"): str(value, "utf-8", "replace") for name, value in event.headers}
        call = Call(self._h2, number, headers, self._limit, self._wants_to_send)
        self._h2.increment_flow_control_window(WINDOW - _DEFAULT_WINDOW, number)
        self._calls[number] = call
        self.tasks[number] = self._loop.create_task(self._serve(number, call))

    async def _serve(self, number: int, call: Call) -> None:
        status: Status | None = STOPPED
        try:
            status = await end_of(call, self._handler)
        finally:  # whatever happened, nobody is left waiting
            del self.tasks[number]
            self._sending.pop(number, None)
            if self._calls.pop(number, None):
                with suppress(ProtocolError):
                    call.end(status)
                self._schedule()
