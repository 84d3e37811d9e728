"""The transport in Rust: HTTP/2 and gRPC framing on threads of their own, outside the interpreter's lock.

Unary RPCs reach the event loop as events, many at a time. Whatever else arrives is handed on, on a socket that only
this process knows, to `http2.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from gateway.http2 import Http2Server
from gateway.http2_call import Call
from gateway.services import Services
from gateway.status import Status
from gateway.tracing import Metadata
from gateway.transport import BROKEN, STOPPED, CannotListen, Method, OpenStream, Pending, Shortcut, carry, too_large

_log = logging.getLogger(__name__)

_AT_ONCE = 256
"""Most events handed to the loop at a time."""

_STREAMS = 512
"""Requests in flight on a connection; each open stream costs some 13 KB, also one that never sends anything."""

_LOOK_S = 0.01
"""How often to ask whether the last answers have left."""


class NativeTransport:
    """pygrpc-native for unary RPCs, and for the rest in front of `http2.py`.

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
        self._services = services
        self._streams = streams
        self._endpoint = Http2Server(self._hand_on, max_message_bytes)
        self._paths = list(methods)
        self._methods = list(methods.values())
        self._shortcuts = [shortcuts.get(path) for path in self._paths]
        self._limit = max_message_bytes
        self._calls: dict[int, Pending] = {}
        self._loop = asyncio.get_running_loop()
        self._open_streams = 0
        self._folder: Path | None = None

    def bind(self, address: str) -> int:
        """As `Transport.bind`."""
        methods = [(path, False) for path in self._paths]
        try:
            self._front = NativeGrpcFront(
                address, methods, call_details=True, metrics=True, max_concurrent_streams=_STREAMS
            )
        except OSError as error:
            raise CannotListen(address) from error
        return self._front.bound_port

    async def start(self) -> None:
        """As `Transport.start`."""
        self._folder = Path(tempfile.mkdtemp(prefix="tensorgate-"))
        socket = self._folder / "http2"
        await self._endpoint.start(socket)
        self._front.set_fallback(str(socket))
        self._front.start()
        threading.Thread(target=self._receive, name="native-transport", daemon=True).start()

    def turn_away(self) -> None:
        """As `Transport.turn_away`, but no client can be told: each request gets its answer from the servicer."""

    async def sent(self) -> None:
        """As `Transport.sent`."""
        while self._unsent() or self._open_streams:  # noqa: ASYNC110  # it only tells when asked
            await asyncio.sleep(_LOOK_S)

    def _unsent(self) -> int:
        """Unary calls whose caller has not been given a status yet; closing would cut their answers off."""
        counted = (self._front.metrics() or {"methods": {}})["methods"].values()
        return sum(each["started"] - sum(ended["count"] for ended in each["status"].values()) for each in counted)

    async def stop(self, grace_s: float | None) -> None:
        """As `Transport.stop`."""
        for call, pending in self._calls.items():
            pending.cancel()
            self._fail(call, STOPPED)
        self._calls.clear()
        await self._endpoint.stop(grace_s)
        await asyncio.to_thread(self._front.close)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _hand_on(self, call: Call) -> Status | None:
        if open_stream := self._streams.get(call.path):
            self._open_streams += 1
            try:
                with open_stream(call.deadline, call.headers.items()) as stream:
                    status = await carry(stream, call)
                await call.flush()
            finally:
                self._open_streams -= 1
            return status
        return await self._services.serve(call)

    def _receive(self) -> None:
        try:
            while (events := self._front.recv_batch_details(_AT_ONCE)) is not None:
                if left := [event for event in events if not self._answered(event)]:
                    self._loop.call_soon_threadsafe(self._dispatch, left, time.perf_counter())
        except RuntimeError:
            if not self._loop.is_closed():
                self._broken()
        except BaseException:
            self._broken()

    def _answered(self, event: tuple[Any, ...]) -> bool:
        """Answer a call here, without waking the event loop, if its response is known."""
        kind, call, method, message, *_ = event
        shortcut = self._shortcuts[method] if kind == EVENT_CALL else None
        response = shortcut(message) if shortcut else None
        if response is not None:
            self._front.respond(call, response)
        return response is not None

    def _broken(self) -> None:
        _log.critical("the native transport fails: stopping, since no request would be answered", exc_info=True)
        os.kill(os.getpid(), signal.SIGTERM)

    def _dispatch(self, events: Sequence[tuple[Any, ...]], now: float) -> None:
        """Begin the calls that arrived `now`, and end those whose callers are gone."""
        for kind, call, method, message, _, details in events:
            if kind == EVENT_CALL:
                metadata, _, left = details
                self._begin(call, method, message, inf if left is None else now + left, metadata)
            elif pending := self._calls.pop(call, None):  # the caller is gone, or its deadline has passed
                pending.cancel()

    def _begin(self, call: int, method: int, message: bytes, deadline: float, metadata: Metadata) -> None:
        if len(message) > self._limit:
            self._fail(call, too_large("request", message, self._limit))
            return
        try:
            pending = self._methods[method](message, deadline, metadata, partial(self._answer, call))
        except Exception:  # whatever happened, nobody is left waiting
            _log.exception("%s failed", self._paths[method])
            self._fail(call, BROKEN)
            return
        if pending:
            self._calls[call] = pending

    def _answer(self, call: int, answer: bytes | Status) -> None:
        self._calls.pop(call, None)
        if isinstance(answer, Status):
            self._fail(call, answer)
        elif len(answer) > self._limit:
            self._fail(call, too_large("response", answer, self._limit))
        else:
            self._front.respond(call, answer)

    def _fail(self, call: int, status: Status) -> None:
        self._front.fail(call, status.code.value[0], status.details)
