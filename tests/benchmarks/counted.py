"""Requests through a gateway's servicer without a transport, for callgrind to count: `benchmarks.instructions` runs it.

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

import uvloop

from backends.registry import Registry
from benchmarks.models import echo, floats
from gateway.cache import ResponseCache
from gateway.engine import Threads
from gateway.loader import Loader
from gateway.logs import ServerLog
from gateway.observing import Observer
from gateway.repository import Repository
from gateway.servicer import Allowed, Servicer
from gateway.settings import Settings
from gateway.state import ServerState
from gateway.status import Status
from gateway.streaming import StreamLimits
from gateway.traces import Traces
from gateway.transport import carry
from tensorgate_client import encode_infer_request

_PLAIN, _CACHED = "echo", "kept"
_UNARY, _STREAMED = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
_AT_ONCE = 8


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


class _Sender:
    """Sends requests of one kind through a servicer, and holds it to answering them."""

    def __init__(self, servicer: Servicer) -> None:
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


def _message(model: str) -> bytes:
    return encode_infer_request(model, {"x": floats()}).SerializeToString()


KINDS: dict[str, tuple[Callable[[_Sender, str, int], Awaitable[None]], str]] = {
    "identity": (_Sender.unary, _PLAIN),
    f"identity, {_AT_ONCE} in flight": (_Sender.at_once, _PLAIN),
    "cache hit": (_Sender.unary, _CACHED),
    "stream message": (_Sender.streamed, _PLAIN),
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
    repository = Repository(folder, loader, _nobody_told)
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
