"""What carries the RPCs, as the server sees it: gRPC's C core (`grpcio.py`), or HTTP/2 of our own (`native.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

from grpc import StatusCode

from gateway.status import Status
from gateway.streaming import Stream
from gateway.tracing import Metadata

BROKEN = Status(StatusCode.INTERNAL, "internal error; the server's log has the cause")
STOPPED = Status(StatusCode.UNAVAILABLE, "the server is shutting down: try another one")
LATE = Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

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


class CannotListen(Exception):
    """The address is taken, or not this machine's."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a transport holds its callers to.

    Attributes:
        message_bytes: of a request or response.
        connection_age_s: after which, a tenth more or less, a connection takes no further calls: its client opens
            another one, and sees servers that came later.
    """

    message_bytes: int
    connection_age_s: float = inf


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

    async def turn_away(self) -> None:
        """Send clients elsewhere, and return when they know it; what has arrived is still answered."""
        ...

    async def sent(self) -> None:
        """Return when the answers to all unary calls have left, if `stop` would not wait for them."""
        ...

    async def stop(self, grace_s: float | None) -> None:
        """Close every connection, at the latest after `grace_s`."""
        ...


def too_large(what: str, message: bytes, limit: int) -> Status:
    """The status for a request or a response over the limit."""
    told = f"{what} larger than max ({len(message)} vs. {limit}): --max-message-mb sets the limit"
    return Status(StatusCode.RESOURCE_EXHAUSTED, told)
