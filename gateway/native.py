"""The transport of our own: HTTP/2 and gRPC's framing on the event loop itself.

A call is begun by the same turn of the loop that reads its bytes: no other thread takes part, and all that has arrived
by then is there for the next batch.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Mapping
from contextlib import suppress

from gateway.conversations import Conversations
from gateway.http2 import Connection
from gateway.http2_call import Call
from gateway.http2_headers import Head
from gateway.http2_outgoing import Stream
from gateway.http2_unary import Unary
from gateway.services import Services
from gateway.tls import Tls, renewing
from gateway.transport import CannotListen, Limits, Method, OpenStream, Shortcut

_BACKLOG = 4096
"""Connections that may wait to be taken."""

_LOOK_S = 0.01
"""How often to ask whether the last answers have left."""

_WAY_S = 1.0
"""How long a peer may take to say that it knows."""

_SILENCE_S, _ASKED_S, _ASKED = 60, 10, 6
"""When to ask a silent peer's machine whether it is still there, how often, how many times."""


class NativeTransport:
    """Connections, and the calls on them.

    Args:
        services: every other service.
        methods: unary RPCs by path.
        streams: bidirectional RPCs by path.
        shortcuts: for unary RPCs, by path.
        limits: of messages and connections.

    Attributes:
        tls: encrypts connections, if it is set before `start`.
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
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._peers: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    def bind(self, address: str) -> int:
        """As `Transport.bind`."""
        host, _, port = address.rpartition(":")
        try:
            self._sockets = _listening(host.strip("[]"), int(port))
        except OSError as error:
            raise CannotListen(address) from error
        return int(self._sockets[0].getsockname()[1])

    async def start(self) -> None:
        """As `Transport.start`."""
        context = renewing(self.tls) if self.tls else None
        for each in self._sockets:
            server = await self._loop.create_server(self._connection, sock=each, backlog=_BACKLOG, ssl=context)
            self._servers.append(server)

    async def turn_away(self) -> None:
        """As `Transport.turn_away`: what peers send before they know is served."""
        self._leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAY_S):
                while not all(peer.knows for peer in self._peers):  # noqa: ASYNC110  # as below
                    await asyncio.sleep(_LOOK_S)

    def _leave(self) -> None:
        for server in self._servers:
            server.close()
        for peer in list(self._peers):
            peer.leave()

    async def sent(self) -> None:
        """As `Transport.sent`."""
        while self._conversations.streaming or any(map(_sending, self._peers)):  # noqa: ASYNC110  # nobody who sends should have to tell
            await asyncio.sleep(_LOOK_S)

    async def stop(self, grace_s: float | None) -> None:
        """As `Transport.stop`."""
        self._leave()
        await self._conversations.stop(grace_s or 0)
        for peer in self._peers:
            for stream in list(peer.streams.values()):
                if isinstance(stream, Unary):
                    stream.stop()
        for peer in list(self._peers):
            peer.end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed(), grace_s or _LOOK_S)
        for peer in list(self._peers):
            peer.abort()

    async def _closed(self) -> None:
        while self._peers:  # noqa: ASYNC110  # as above
            await asyncio.sleep(_LOOK_S)

    def _connection(self) -> Connection:
        age_s = self._limits.connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311  # who came together is not to leave so
        return Connection(self._open, self._peers, age_s)

    def _open(self, connection: Connection, number: int, head: Head) -> Stream:
        if found := self._methods.get(head.path):
            return Unary(connection, number, head, found, self._limits.message_bytes)
        call = Call(connection, number, head, self._limits.message_bytes)
        call.task = self._conversations.begin(call, head.metadata)
        return call


def _sending(peer: Connection) -> bool:
    """Whether answers to a peer's calls have not left."""
    return peer.unsent or any(isinstance(stream, Unary) and stream.answered for stream in peer.streams.values())


def _listening(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses that a host's name stands for, on the same port."""
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((family, where[0]) for family, *_, where in found):
        made = socket.create_server((str(address), port), family=family, dualstack_ipv6=address == "::")
        port = made.getsockname()[1]
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # of each connection, too: they inherit these
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASKED_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASKED)
        sockets.append(made)
    return sockets
