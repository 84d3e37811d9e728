"""The transport of the package grpcio, which always works.

It is driven by the events of gRPC's C core, as the package's own synchronous server is, and not through its asyncio
layer: that one passes each call through some ten tasks and futures, brings calls one by one, and ends at the first path
that is not UTF-8.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

from gateway.conversations import Conversations
from gateway.grpcio_call import Call
from gateway.grpcio_tls import credentials
from gateway.grpcio_unary import Unary
from gateway.services import Services
from gateway.tls import Tls
from gateway.tracing import Metadata
from gateway.transport import CannotListen, Limits, Method, OpenStream, Shortcut

_log = logging.getLogger(__name__)

_STREAMS = 8192
"""Requests in flight on a connection; an open one costs up to 36 KB, also one that never sends anything. gRPC refuses
what is beyond even from clients that keep to what they were told, so that it is more than these ever have."""

_ACCEPTING = 16
"""Calls that may begin before the first of them has been looked at."""

_AT_ONCE = 64
"""Most events that the loop takes at a time."""

_LINGER_S = 0.0001
"""How long the event loop looks for further events after the last one, before it leaves them to their thread again."""

_NO_WAITING = 0.0
"""A time, in gRPC's terms, that has been."""

_NEVER_S = 1e12
"""Times beyond are gRPC's way to say that there is none."""

_NEVER_MS = (1 << 31) - 1
"""An age, in gRPC's terms, that no connection reaches."""

_LOOK_S = 0.01
"""How often to ask whether the last answers have left."""


class GrpcioTransport:
    """gRPC's C core: the event loop takes its events while they keep coming, a thread waits for those that do not.

    Args:
        services: every other service.
        methods: unary RPCs by path.
        streams: bidirectional RPCs by path.
        shortcuts: for unary RPCs, by path.
        limits: of messages and connections.

    Attributes:
        tls: encrypts connections, if it is set before `bind`.
    """

    tls: Tls | None = None

    def __init__(
        self,
        services: Services,
        methods: Mapping[str, Method],
        streams: Mapping[str, OpenStream],
        shortcuts: Mapping[str, Shortcut],
        limits: Limits,
    ) -> None:
        self._methods = {path: (method, shortcuts.get(path)) for path, method in methods.items()}
        self._conversations = Conversations(streams, services)
        self.limit = limits.message_bytes
        self._loop = asyncio.get_running_loop()
        self._events = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(_options(limits), False)  # noqa: FBT003  # a foreign signature
        self._server.register_completion_queue(self._events)
        self._handed: list[Callable[[], object]] = []
        self._returned = threading.Semaphore(0)  # events are the thread's again
        self._last_event = 0.0
        self.calls: set[Unary] = set()
        self._shut = asyncio.Event()
        self._shutting = False
        self._receiving = True

    def bind(self, address: str) -> int:
        """As `Transport.bind`."""
        if port := self._server.add_http2_port(address.encode(), credentials(self.tls) if self.tls else None):
            return int(port)
        raise CannotListen(address)

    async def start(self) -> None:
        """As `Transport.start`."""
        self._server.start()
        for _ in range(_ACCEPTING):
            self._accept()
        threading.Thread(target=self._receive, name="grpcio-transport", daemon=True).start()

    async def turn_away(self) -> None:
        """As `Transport.turn_away`: connections are told to open no further streams."""
        if not self._shutting:
            self._shutting = True
            self._server.shutdown(self._events, self._ended)

    def _ended(self, _: Any) -> None:
        # The queue is not shut down, too: whoever began an operation after that would end the process.
        self._receiving = False
        self.hand(self._shut.set)

    async def sent(self) -> None:
        """As `Transport.sent`. Calls whose message has not arrived have no answer to wait for."""
        while self._conversations.streaming or any(call.answered for call in list(self.calls)):  # noqa: ASYNC110  # the other thread's
            await asyncio.sleep(_LOOK_S)

    async def stop(self, grace_s: float | None) -> None:
        """As `Transport.stop`."""
        await self.turn_away()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._shut.wait(), grace_s or 0)
        for call in list(self.calls):
            call.stop()
        await self._conversations.stop(0)
        self._server.cancel_all_calls()
        await self._shut.wait()

    def hand(self, function: Callable[[], object]) -> None:
        """Have the event loop call it soon; where the events are taken."""
        self._handed.append(function)

    def _receive(self) -> None:
        """Take events on a thread of their own, until one is for the event loop, which then takes them itself."""
        try:
            while self._receiving:
                event = self._events.poll(None)
                event.tag(event)
                if self._handed:
                    self._loop.call_soon_threadsafe(self._begin_turn)
                    self._returned.acquire()
        except BaseException:
            self._fail()

    def _begin_turn(self) -> None:
        self._last_event = time.perf_counter()
        self._turn()

    def _turn(self) -> None:
        """Call what has been handed over, and take further events as long as they keep coming.

        Passing each of them from one thread to the other would cost more than all else that a small request needs.
        """
        try:
            self._call_handed()
            taken = self._take_ready()
            self._call_handed()
        except BaseException:
            self._fail()
            return
        now = time.perf_counter()
        if taken:
            self._last_event = now
        if self._receiving and now - self._last_event < _LINGER_S:
            self._loop.call_soon(self._turn)
        else:
            self._returned.release()

    def _call_handed(self) -> None:
        handed, self._handed = self._handed, []
        for function in handed:
            function()

    def _take_ready(self) -> bool:
        """Take the events that are there, if not too many; whether there were any."""
        for taken in range(_AT_ONCE):
            event = self._events.poll(_NO_WAITING)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                return taken > 0
            event.tag(event)
        return True

    def _fail(self) -> None:
        if not self._loop.is_closed():
            _log.critical("gRPC fails: stopping, since no request would be answered", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _accept(self) -> None:
        with suppress(ValueError):  # it is shutting down
            self._server.request_call(self._events, self._events, self._arrived)

    def _arrived(self, event: Any) -> None:
        if not event.success:  # it is shutting down
            return
        self._accept()
        left = event.call_details.deadline - time.time()
        deadline = time.perf_counter() + left if left < _NEVER_S else inf
        path, metadata = event.call_details.method.decode(errors="replace"), event.invocation_metadata
        if found := self._methods.get(path):
            Unary(self, event.call, found, deadline, metadata)
        else:
            self.hand(partial(self._open, Call(event.call, path, deadline, self.limit, self.hand), metadata))

    def _open(self, call: Call, metadata: Metadata) -> None:
        call.begin(self._conversations.begin(call, metadata))


def _options(limits: Limits) -> list[tuple[str, int]]:
    age_ms = min(limits.connection_age_s * 1000, _NEVER_MS)
    return [
        ("grpc.so_reuseport", 0),  # or a second server would silently share the port
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_connection_age_ms", int(age_ms)),
        ("grpc.max_send_message_length", -1),  # told in our own words
        ("grpc.max_concurrent_streams", _STREAMS),
        # Above its own small limits gRPC answers bursts with a random CANCELLED.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 200_000),
        # Clients that keep connections alive through balancers are thrown off by default.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
