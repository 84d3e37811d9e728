"""One call of many messages over gRPC's C core: what arrives waits for its reader, what is written leaves in order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

from gateway.status import Status

_WINDOW = 1 << 20
"""Bytes of a call that may have arrived and not been read, or wait to leave."""

_EACH = 128
"""Bytes that every message counts for beside its own, so that empty ones do not come without end."""


class Call:
    """A call. What is named after an event runs where events are taken, the rest on the event loop.

    Args:
        call: the core's.
        path: of the method.
        deadline: when the caller stops waiting (`time.perf_counter`), infinite if it does not say.
        max_message_bytes: of a response.
        hand: has the event loop call a function soon.
    """

    def __init__(
        self,
        call: Any,
        path: str,
        deadline: float,
        max_message_bytes: int,
        hand: Callable[[Callable[[], object]], None],
    ) -> None:
        self._call = call
        self.path = path
        self.deadline = deadline
        self._limit = max_message_bytes
        self._hand = hand
        self._lock = threading.Lock()  # of what both threads count
        self._in: deque[bytes | None] = deque()
        self._unread = 0
        self._asked = False  # whether a message has been asked for, which has not arrived, or the last one has
        self._out: deque[bytes] = deque()
        self._unsent = 0
        self._sending = False
        self._begun = False
        self._gone = False
        self._waiting = False
        self._changed = asyncio.Event()
        self._leaving = 0
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.path} in={len(self._in)} out={len(self._out)}>"

    def begin(self, task: asyncio.Task[None]) -> None:
        """Receive messages; `task` serves them, and is cancelled when the caller goes away."""
        self._task = task
        self._asked = True
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        self._ask()

    async def read(self) -> bytes | None:
        """The next message; None after the last one."""
        await self._until(lambda: bool(self._in))
        message = self._in[0]
        if message is None:
            return None  # and it stays there
        self._in.popleft()
        with self._lock:
            self._unread -= len(message) + _EACH
            ask = not self._asked and self._unread < _WINDOW
            self._asked = self._asked or ask
        if ask:
            self._ask()
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; returns when there is room for another."""
        with self._lock:
            self._unsent += len(message) + _EACH
            first, self._sending = not self._sending, True
            if not first:
                self._out.append(message)
        if first:
            self._send(message, more=False)
        if self._unsent >= _WINDOW:
            await self._until(lambda: self._unsent < _WINDOW)

    async def flush(self) -> None:
        """Return when everything has left."""
        await self._until(lambda: not self._sending)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            self._waiting = True
            if not holds():  # it may have come before anybody could know that it is waited for
                await self._changed.wait()

    def end(self, status: Status | None) -> None:
        """Tell the caller that it is over, with what is still to leave cut off."""
        self._task = None  # with it, and thus its traceback, what waits here would wait for the garbage collector
        if self._gone:
            return
        code, details = (status.code.value[0], status.details.encode()) if status else (0, b"")
        if self._sending:
            self._call.cancel(code, details)
            return
        ending = cygrpc.SendStatusFromServerOperation((), code, details, 0)
        self._call.start_server_batch((*self._beginning(), ending), _sent)

    def _beginning(self) -> tuple[Any, ...]:
        begun, self._begun = self._begun, True
        return () if begun else (cygrpc.SendInitialMetadataOperation(None, 0),)

    def _ask(self) -> None:
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        with self._lock:
            self._in.append(message)
            if message is not None:
                self._unread += len(message) + _EACH
                self._asked = self._unread < _WINDOW
            ask = message is not None and self._asked
        if ask:
            self._ask()
        self._tell()

    def _send(self, message: bytes, *, more: bool) -> None:
        hint = cygrpc.WriteFlag.buffer_hint if more else 0
        operation = cygrpc.SendMessageOperation(message, hint)
        self._leaving = len(message) + _EACH  # first: the other thread may hear of the end of it at once
        self._call.start_server_batch((*self._beginning(), operation), self._sent)

    def _sent(self, _: Any) -> None:
        with self._lock:
            self._unsent -= self._leaving
            self._sending = bool(self._out)
            following = self._out.popleft() if self._out else None
            more = bool(self._out)
        if following is not None:
            self._send(following, more=more)
        self._tell()

    def _tell(self) -> None:
        if self._waiting:
            self._waiting = False
            self._hand(self._changed.set)

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._gone = True
            self._hand(self._cancel)

    def _cancel(self) -> None:
        if self._task:
            self._task.cancel()


def _sent(_: Any) -> None:
    """A status has left, or nobody is there to take it."""
