"""Requests through a gateway's servicer, for callgrind to count: `benchmarks.instructions` runs it.

Most kinds go without a transport; one comes over HTTP/2 of our own, from this same process.

`python -m benchmarks.counted REPOSITORY COUNT...` sends each kind of request so many times, COUNT by COUNT. A call of
`os.getloadavg`, which nothing else here makes, comes before the first and after each.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import cast

import uvloop
from hpack import Encoder, NeverIndexedHeaderTuple

from backends.registry import Registry
from benchmarks.models import echo, floats
from gateway import http2_frames as http2
from gateway.cache import ResponseCache
from gateway.conversations import carry
from gateway.engine import Threads
from gateway.http2_headers import ALL_WELL
from gateway.loader import Loader
from gateway.logs import ServerLog
from gateway.native import NativeTransport
from gateway.observing import Observer
from gateway.repository import Repository
from gateway.servicer import Allowed, Servicer
from gateway.services import Services
from gateway.settings import Settings
from gateway.source import Folder
from gateway.state import ServerState
from gateway.status import Status
from gateway.streaming import StreamLimits
from gateway.traces import Traces
from gateway.transport import Limits
from tensorgate_client import encode_infer_request

_PLAIN, _CACHED = "echo", "kept"
_UNARY, _STREAMED = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
_AT_ONCE = 8
_HEADERS = bytes(
    Encoder().encode(
        NeverIndexedHeaderTuple(*header)
        for header in ((":method", "POST"), (":path", _UNARY), ("content-type", "application/grpc"), ("te", "trailers"))
    )
)


class _Requests:
    """A stream's call whose other end sends one message again and again, and counts the responses."""

    def __init__(self, message: bytes, count: int) -> None:
        self._message = message
        self._left = count
        self.answered = 0

    async def read(self) -> bytes | None:
        """As `Messages.read`."""
        if not self._left:
            return None
        self._left -= 1
        return self._message

    async def write(self, message: bytes, /) -> None:
        """As `Messages.write`."""
        self.answered += b"error" not in message


class _Caller(asyncio.Protocol):
    """The other end of a connection: sends a call, and the next one when it has been answered."""

    def __init__(self, message: bytes, count: int) -> None:
        self._framed = b"\0" + len(message).to_bytes(4, "big") + message
        self._number, self._end = -1, 2 * count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `asyncio.Protocol`'s."""
        self._transport = cast("asyncio.Transport", transport)
        more = (http2.MOST - http2.DEFAULT_WINDOW).to_bytes(4, "big")
        settings = http2.frame(http2.SETTINGS, 0, 0, b"") + http2.frame(http2.WINDOW_UPDATE, 0, 0, more)
        self._transport.write(http2.PREFACE + settings)
        self._call()

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`'s."""
        if data.endswith(ALL_WELL):
            self._call()

    def _call(self) -> None:
        self._number += 2
        if self._number > self._end:
            self._transport.close()
            self.done.set_result(None)
            return
        headers = http2.frame(http2.HEADERS, http2.END_HEADERS, self._number, _HEADERS)
        self._transport.write(headers + http2.frame(http2.DATA, http2.END_STREAM, self._number, self._framed))


class _Sender:
    """Sends requests of one kind through a servicer, and holds it to answering them."""

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer
        self._infer = servicer.methods()[_UNARY]
        self._known = servicer.shortcuts()[_UNARY]
        self._open = servicer.streams()[_STREAMED]

    async def unary(self, model: str, count: int) -> None:
        """One after the other."""
        message = _message(model)
        for _ in range(count):
            answer = await self._answer(message)
            if not isinstance(answer, bytes):
                raise SystemExit(f"{model}: {answer}")

    async def _answer(self, message: bytes) -> bytes | Status:
        if (response := self._known(message)) is not None:
            return response
        answered: asyncio.Future[bytes | Status] = asyncio.get_running_loop().create_future()
        self._infer(message, inf, (), answered.set_result)
        return await answered

    async def at_once(self, model: str, count: int) -> None:
        """Always so many in flight."""
        await asyncio.gather(*(self.unary(model, count // _AT_ONCE) for _ in range(_AT_ONCE)))

    async def streamed(self, model: str, count: int) -> None:
        """As the messages of one stream."""
        call = _Requests(_message(model), count)
        with self._open(inf, ()) as stream:
            status = await carry(stream, call)
        if status or call.answered != count:
            raise SystemExit(f"{model}: {call.answered} of {count} messages answered, then {status}")

    async def over_http2(self, model: str, count: int) -> None:
        """One after the other, over a connection."""
        methods, shortcuts = self._servicer.methods(), self._servicer.shortcuts()
        transport = NativeTransport(Services(), methods, {}, shortcuts, Limits(1 << 20))
        port = transport.bind("127.0.0.1:0")
        await transport.start()
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: _Caller(_message(model), count), "127.0.0.1", port)
        await asyncio.wait_for(caller.done, 60)
        await transport.stop(None)


def _message(model: str) -> bytes:
    return encode_infer_request(model, {"x": floats()}).SerializeToString()


KINDS: dict[str, tuple[Callable[[_Sender, str, int], Awaitable[None]], str]] = {
    "identity": (_Sender.unary, _PLAIN),
    f"identity, {_AT_ONCE} in flight": (_Sender.at_once, _PLAIN),
    "cache hit": (_Sender.unary, _CACHED),
    "stream message": (_Sender.streamed, _PLAIN),
    "cache hit over HTTP/2, both ends": (_Sender.over_http2, _CACHED),
}
"""What is sent, in order, and to which model."""


def lay_out(repository: Path) -> None:
    """Write the models that are asked."""
    for name, model in {_PLAIN: echo(), _CACHED: echo("response_cache { enable: true }")}.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(model.config)


async def _servicer(folder: Path) -> Servicer:
    """What a server puts together, around the models of `folder`."""
    settings = Settings(_cli_parse_args=False, model_repository=folder)
    limit = settings.max_message_mb * 1024 * 1024
    log = ServerLog(settings.log_level, "human", sys.stderr)
    loader = Loader(
        Threads(Registry()), settings.default_max_batch_size, ResponseCache(settings.cache_size_mb * 1024 * 1024)
    )
    repository = Repository(Folder(folder), loader, _nobody_told)
    await repository.load_each(await repository.announce(["*"]))
    observer = Observer(Traces(settings, "0"), log, None, limit)
    limits = StreamLimits(settings.stream_window, limit)
    return Servicer(repository, ServerState(), observer, limits, Allowed(loading=False, shared_memory=None))


async def _nobody_told(name: str, ready: bool) -> None:  # noqa: FBT001  # a listener's plain signature
    pass


async def _run(folder: Path, counts: list[int]) -> None:
    sender = _Sender(await _servicer(folder))
    for send, model in KINDS.values():
        await send(sender, model, counts[0])  # the first requests find nothing prepared
    gc.collect()
    gc.freeze()  # or a collection of all that start-up made would fall on one request in thousands
    os.getloadavg()
    for send, model in KINDS.values():
        for count in counts:
            await send(sender, model, count)
            os.getloadavg()


if __name__ == "__main__":
    uvloop.run(_run(Path(sys.argv[1]), [int(count) for count in sys.argv[2:]]))
