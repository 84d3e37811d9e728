"""`/metrics` over HTTP.

The event loop, whose counters these are, takes the calls and the reading; the page is written on a thread, since with
many models that takes longer than requests should wait.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.parser import BytesHeaderParser
from http import HTTPStatus

from gateway.metrics import MetricsPage, Reading

_log = logging.getLogger(__name__)

_PATH = "/metrics"
_PATIENCE_S = 10.0  # with whoever connects and then sends or reads nothing
_TEXT = "text/plain; charset=utf-8"


class MetricsEndpoint:
    """Answers scrapes, from `start` to `close`.

    Args:
        host, port: where; port 0 is a free one.
        read: the server's counters at this moment; called on the event loop.
        page: writes them.

    Raises:
        OSError: the address cannot be had.
    """

    def __init__(self, host: str, port: int, read: Callable[[], Reading], page: MetricsPage) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
        self._read = read
        self._page = page
        self._writer = ThreadPoolExecutor(1, "metrics")
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Answer from now on."""
        self._server = await asyncio.start_server(self._answer, sock=self._socket)

    def close(self) -> None:
        """Take no further calls; those under way end with the event loop."""
        if self._server:
            self._server.close()
        self._writer.shutdown(wait=False)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, content_type, body = await self._response(head)
                lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {content_type}"]
                lines += [f"Content-Length: {len(body)}", "Connection: close", "\r\n"]
                writer.write("\r\n".join(lines).encode() + body)
                await writer.drain()
            writer.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):  # gone, too slow, or no HTTP
            writer.transport.abort()

    async def _response(self, head: bytes) -> tuple[HTTPStatus, str, bytes]:
        line, _, fields = head.partition(b"\r\n")
        method, _, target = line.decode("latin-1").partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if path != _PATH:
            return HTTPStatus.NOT_FOUND, _TEXT, f"the metrics are at {_PATH}\n".encode()
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"use GET\n"
        try:
            accept = ", ".join(map(str, BytesHeaderParser().parsebytes(fields).get_all("Accept", [])))
            loop = asyncio.get_running_loop()
            page, content_type = await loop.run_in_executor(self._writer, self._page.write, self._read(), accept)
        except Exception:  # whatever it is, whoever scrapes gets an answer, and requests theirs
            _log.exception("the metrics cannot be written")
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"the server's log has the cause\n"
        return HTTPStatus.OK, content_type, page
