"""Whether the server takes requests, and what it has under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.logs import AccessLog


@dataclass(slots=True)
class ServerState:
    """Whether the server takes requests, and how many it has under way.

    Attributes:
        ready: whether every model has loaded or failed.
        draining: whether new requests are refused.
        in_flight: requests under way.
        on_drain: called when draining begins.
        access: told of each call that ends; None if nobody wants to know.
    """

    ready: bool = False
    draining: bool = False
    in_flight: int = 0
    on_drain: set[Callable[[], None]] = field(default_factory=set)
    access: AccessLog | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def streams(self) -> int:
        """Open streams: they, and nobody else, are to be told of draining."""
        return len(self.on_drain)

    def enter(self) -> None:
        """Count a request in."""
        self.in_flight += 1

    def leave(self, count: int = 1) -> None:
        """Count requests out."""
        self.in_flight -= count
        if self.draining and not self.in_flight:
            self._idle.set()

    async def drained(self) -> None:
        """Refuse new requests; return when the last one is out."""
        self.ready, self.draining = False, True
        for notify in list(self.on_drain):
            notify()
        if self.in_flight:
            await self._idle.wait()
