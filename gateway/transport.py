"""What carries the RPCs, as the server sees it: grpc.aio (`grpcio.py`), or a server in Rust (`native.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

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

Shortcut: TypeAlias = Callable[[bytes], bytes | None]
"""What may know the response to a serialized request at once, and is asked first. Needs no event loop, but only one
thread may ask."""

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
